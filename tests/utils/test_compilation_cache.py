"""Where compiled programs are kept, and where they are not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Prints whether JAX was given a folder, having compiled a program that takes its time for the entry to be written.
PROGRAM = """
import jax, warnings
warnings.simplefilter("error")
from rml_jax.utils.compilation_cache import use_compilation_cache
use_compilation_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
print(jax.jit(lambda x: jax.numpy.sin(x) * 3)(1.0))
print(jax.config.jax_compilation_cache_dir)
"""


def start(**environment):
    """Starts `PROGRAM`; `communicate` of the result gives what it prints."""
    kept = {k: v for k, v in os.environ.items() if k not in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME")}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=kept | {name: str(value) for name, value in environment.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def printed(process):
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    assert errors == ""
    return out.split()


def test_two_processes_at_once_share_the_folder_below_home(tmp_path):
    together = [start(HOME=tmp_path), start(HOME=tmp_path)]
    (first, folder), (second, same_folder) = map(printed, together)
    assert first == second
    assert folder == same_folder
    assert Path(folder).parent == tmp_path / ".cache" / "rml_jax"
    before = sorted(Path(folder).iterdir())
    assert before, "programs were kept"
    assert printed(start(HOME=tmp_path)) == [first, folder]
    assert sorted(Path(folder).iterdir()) == before, "and found again"


@pytest.mark.parametrize("variable", ["HOME", "XDG_CACHE_HOME"])
def test_without_a_folder_to_write_to_nothing_is_kept(tmp_path, variable):
    # A file in the folder's place: tests may run as root, whom no permission stops.
    blocked = tmp_path / "file"
    blocked.touch()
    assert printed(start(**{variable: blocked}))[1] == "None"


def test_the_users_own_folder_stays_chosen(tmp_path):
    assert printed(start(HOME=tmp_path, JAX_COMPILATION_CACHE_DIR=tmp_path / "own"))[1] == str(
        tmp_path / "own"
    )
    assert not (tmp_path / ".cache").exists()
