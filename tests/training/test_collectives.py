"""What devices say to each other in a step, from the compiled program."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_activations_never_travel(tmp_path):
    """All-reduces of gradients and losses, and tags: nothing that grows with the images."""
    result = tmp_path / "scaling.json"
    command = [sys.executable, "-m", "benchmarks.scaling", "--json", str(result)]
    subprocess.run([*command, "--devices", "2", "--batch", "4"], cwd=ROOT, capture_output=True, check=True)
    step = json.loads(result.read_text())["steps"]["2"]
    assert step["unexpected"] == []
    assert step["bytes"]["all-reduce"] == pytest.approx(step["parameter_bytes"], rel=0.02)
