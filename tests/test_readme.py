"""The README's examples run, and what it points to is there."""

import re
from pathlib import Path

import pytest

import rml_jax

ROOT = Path(rml_jax.__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PIECES = re.findall(
    r"```python\n(.*?)```", README.split("\n## Pieces to import\n")[1].split("\n## ")[0], re.DOTALL
)


def run(code):
    """The names that an example leaves behind."""
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    return names


def test_examples_are_short_and_give_what_they_say():
    for code in PIECES:
        assert (
            len([line for line in code.splitlines() if line and not line.startswith(("import", "from"))]) <= 5
        )
    par, crf, transformer, losses = map(run, PIECES)
    assert par["refined"].shape == (1, 96, 96, 2)
    assert crf["mask"].shape == (96, 96)
    assert [stage.shape[1] for stage in transformer["features"]] == [32, 16, 16, 16]
    assert transformer["attention"].shape == (1, 8, 256, 256)
    assert 0 <= losses["information"] < 0.5
    assert losses["loss"] == pytest.approx(0.25), (
        "all pairs are positive, R_a = 0.5, and the negative half is empty"
    )


def test_links_lead_to_files():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []
