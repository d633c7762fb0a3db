"""A loss from outside the package: a weight in the configuration, logged, and a panel in the report."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rml_jax

# What a user writes: registers the loss, then behaves as `rml-jax`.
PROGRAM = """
import jax.numpy as jnp

from rml_jax.__main__ import main
from rml_jax.losses import Term, register_term
from rml_jax.ops.cam import class_activation_maps


def cam_size(pair, loss):
    sizes = [jnp.mean(class_activation_maps(view.cam_logits)) for view in (pair.original, pair.warped)]
    return sizes[0] + sizes[1], {"size_original": sizes[0], "size_warped": sizes[1]}


register_term(
    "cam_size", Term(cam_size, weight="cam_size", panels={"size of the CAMs": ("size_original", "size_warped")})
)
main()
"""
SMALL = {
    "data.scene.size": 32,
    "data.scene.digit_size": "(14,20)",
    "train.steps": 1,
    "train.batch_size": 2,
    "train.crop_size": 32,
    "eval.canvases": "((32,32),)",
    "loss.start_step": 0,
    "pseudo_label.dilations": "(1,2)",
    "log.pictures_every": 0,
}


def run(*arguments):
    root = Path(rml_jax.__file__).parents[1]
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_loss_from_outside_is_trained_logged_and_reported(tmp_path):
    keys = [f"--config.{key}={value}" for key, value in (SMALL | {"loss.cam_size": 0.5}).items()]
    progress = run("train", "--config=digits_small", f"--workdir={tmp_path}", *keys)
    (entry,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    sizes = entry["size_original"] + entry["size_warped"]
    assert entry["cam_size"] == pytest.approx(sizes, rel=1e-5)
    assert sizes > 0
    others = entry["classification"] + 0.1 * (entry["ciml"] + entry["mfml"] + entry["apml"])
    assert entry["loss"] == pytest.approx(others + 0.5 * sizes, rel=1e-5)
    assert f"cam_size {entry['cam_size']:.4f}" in progress
    run("report", f"--workdir={tmp_path}")
    page = (tmp_path / "report.html").read_text()
    assert "size of the CAMs" in page
    assert re.search(r"loss\.cam_size</th><td[^>]*>0\.5</td>", page)
