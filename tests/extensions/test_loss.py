"""A loss from outside the package: a weight in the configuration, logged, and a panel in the report."""

import json
import re
import subprocess
import sys

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
    "log.pictures_every": 0,
}


def run(program, *arguments):
    done = subprocess.run([sys.executable, program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_loss_from_outside_is_trained_logged_and_reported(tmp_path):
    program, workdir = tmp_path / "my_rml.py", tmp_path / "run"
    program.write_text(PROGRAM)
    keys = [f"--config.{key}={value}" for key, value in (SMALL | {"loss.cam_size": 0.5}).items()]
    progress = run(program, "train", "--config=digits_small", f"--workdir={workdir}", *keys)
    (entry,) = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert entry["cam_size"] == entry["size_original"] + entry["size_warped"] > 0
    others = entry["classification"] + 0.1 * (entry["ciml"] + entry["mfml"] + entry["apml"])
    assert abs(entry["loss"] - others - 0.5 * entry["cam_size"]) < 1e-5
    assert f"cam_size {entry['cam_size']:.4f}" in progress
    run(program, "report", f"--workdir={workdir}")
    page = (workdir / "report.html").read_text()
    assert "size of the CAMs" in page
    assert re.search(r"loss\.cam_size</th><td[^>]*>0\.5</td>", page)
