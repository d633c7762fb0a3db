"""The example of docs/second_stage.md: a network trained on pseudo masks is better than the CAMs they are from."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rml_jax
from rml_jax.__main__ import COMMANDS

ROOT = Path(rml_jax.__file__).parents[1]
PAGE = (ROOT / "docs" / "second_stage.md").read_text(encoding="utf-8")


def example():
    return re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]


def commands():
    """The commands of the page's section about the digits, in order, without `python`."""
    section = PAGE.split("\n## What it brings on the digits scenes\n")[1]
    lines = re.search(r"```sh\n(.*?)```", section, re.DOTALL)[1].replace("\\\n", " ").splitlines()
    return [line.partition("#")[0].split() for line in lines]


def test_the_example_is_short():
    assert len(example().splitlines()) < 60
    compile(example(), "example", "exec")


def test_the_commands_of_the_page_exist():
    assert {words[1] for words in commands() if words[0] == "rml-jax"} <= COMMANDS.keys()


@pytest.mark.slow
def test_the_second_stage_is_better_than_the_cams(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "second.py").write_text(example())
    for words in commands():
        program = ["-m", "rml_jax"] if words[0] == "rml-jax" else []
        # Without quotes, as a shell passes them on.
        arguments = [word.replace('"', "") for word in words[1:]]
        environment = {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, *program, *arguments],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    first = json.loads((tmp_path / "first/eval/metrics.json").read_text())["miou"]
    second = json.loads((tmp_path / "scores/eval/metrics.json").read_text())["miou"]
    assert second["files"]["masks"] > first["predicted"]["cam"]
    assert second["files"]["masks"] > first["given"]["cam"]
