"""`eval`, `predict` and `pseudo` in several processes over loopback: the same results, also after a kill."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from configs import digits
from rml_jax.config import save_config
from rml_jax.inference.export.checksums import write_sums
from rml_jax.inference.export.weights import FILES, write_model
from rml_jax.models import build
from tests.e2e.runs import ROOT, TINY, slurm_variables
from tests.references.networks import random_network

pytestmark = pytest.mark.slow
IMAGES = 13  # a multiple of none of the numbers of processes


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of an exported model with random weights."""
    config = digits.get_config()
    for key, value in TINY.items():
        config.update_from_flattened_dict({key: eval(value) if isinstance(value, str) else value})
    config.data.num_train, config.data.num_val = IMAGES, IMAGES
    config.eval.canvases, config.eval.batch_size, config.eval.pictures = ((32, 32),), 2, 1
    config.eval.stages, config.pseudo_label.iterations = ("cam", "par"), 2
    config.eval.sweep.split, config.eval.sweep.grid = "train", (0.1, 0.3)
    _, params = nnx.split(random_network(lambda: build.build_model(config, seed=0)))
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, config, params, step=7)
    write_sums(folder, FILES)
    save_config(config, folder / "config.json")
    write_sums(folder, FILES)
    return folder


def start(count, *arguments):
    """Starts a command in some processes. Returns a list of subprocess.Popen."""
    shared = ["--config.distributed=True"] if count > 1 else []
    return [
        subprocess.Popen(
            [sys.executable, "-m", "rml_jax", *map(str, arguments), *shared],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for variables in (slurm_variables(count) if count > 1 else [{}])
    ]


def finish(processes):
    """Returns the exit status and output of each process."""
    outputs = [process.communicate(timeout=3600)[0] for process in processes]
    return [process.returncode for process in processes], outputs


def run(count, *arguments):
    statuses, outputs = finish(start(count, *arguments))
    assert statuses == [0] * count, "\n".join(outputs)
    return outputs


def eval_arguments(model, workdir):
    workdir.mkdir(exist_ok=True)
    (workdir / "config.json").write_bytes((model / "config.json").read_bytes())
    return ["eval", f"--workdir={workdir}", f"--weights={model / 'model.safetensors'}", "--save_masks"]


def scores(workdir):
    metrics = json.loads((workdir / "eval" / "metrics.json").read_text())
    del metrics["settings"]["distributed"], metrics["devices"], metrics["commit"]
    return metrics


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def alone(model, tmp_path_factory):
    """The work directory of an evaluation in one process."""
    workdir = tmp_path_factory.mktemp("alone")
    run(1, *eval_arguments(model, workdir))
    return workdir


@pytest.mark.parametrize("count", [2, 4])
def test_scores_are_the_same_to_the_last_digit(alone, model, tmp_path, count):
    outputs = run(count, *eval_arguments(model, tmp_path))
    assert scores(tmp_path) == scores(alone)
    assert files(tmp_path / "eval" / "masks") == files(alone / "eval" / "masks")
    for name in ("per_class.md", "sweep.json"):
        assert (tmp_path / "eval" / name).read_text() == (alone / "eval" / name).read_text()
    assert not (tmp_path / "eval" / "parts").exists()
    assert ["stage" in output for output in outputs] == [True] + [False] * (count - 1), "one of them prints"


def test_a_killed_process_ends_the_others_and_one_process_goes_on(alone, model, tmp_path):
    arguments = eval_arguments(model, tmp_path)
    processes = start(3, *arguments)
    end = time.monotonic() + 3600
    while not list(tmp_path.glob("eval/parts/*/settings.json")) and time.monotonic() < end:
        time.sleep(0.05)
    processes[1].kill()
    statuses, outputs = finish(processes)
    assert 0 not in statuses, outputs
    for number in (0, 2):
        assert "error: process" in outputs[number] or "another task died" in outputs[number], outputs[number]
    assert not (tmp_path / "eval" / "metrics.json").exists()
    for path in (tmp_path / "eval").rglob("*.png"):
        Image.open(path).load()
    for path in (tmp_path / "eval").rglob("*.npz"):
        np.load(path)["indices"]
    run(1, *arguments)
    assert scores(tmp_path) == scores(alone)


def test_pseudo_masks_are_the_same(model, tmp_path):
    for count in (1, 2):
        run(count, "pseudo", f"--workdir={model}", f"--out={tmp_path / str(count)}")
    assert files(tmp_path / "1") == files(tmp_path / "2")
    assert len(files(tmp_path / "1")) == IMAGES + 3


def test_predictions_are_the_same(model, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(5):
        pixels = rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    options = ["--stage=par", "--tags=3,7", "--format=voc", "--page"]
    for count in (1, 2):
        out = tmp_path / str(count)
        run(count, "predict", f"--workdir={model}", f"--out={out}", *options, tmp_path / "photos")
    assert files(tmp_path / "1") == files(tmp_path / "2")
