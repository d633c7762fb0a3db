"""Scoring weights from elsewhere; the scores of a training run's checkpoint are in tests/training/test_loop.py."""

import json

import numpy as np
import pytest
import torch

from configs import digits
from rml_jax.errors import UserError
from rml_jax.evaluation import run
from rml_jax.evaluation.run import evaluate_run
from rml_jax.models import MiTConfig
from rml_jax.models.pretrained import convert
from rml_jax.report import score_table

MINI = MiTConfig.variant("mini")
CLASSES = 10


def tiny_config(*stages):
    config = digits.get_config()
    config.data.num_train, config.data.num_val = 2, 3
    config.data.scene.size, config.data.scene.digit_size = 32, (14, 20)
    config.train.crop_size = 32
    config.pseudo_label.iterations = 2
    config.eval.canvases, config.eval.batch_size, config.eval.pictures = ((32, 32),), 3, 1
    config.eval.stages = stages or ("cam", "affinity", "par")
    return config


@pytest.fixture(scope="module")
def peer(original_layout):
    """The weights of an AFA-style PyTorch model."""
    rng = np.random.default_rng(1)
    tensors = {f"module.encoder.{name}": tensor for name, tensor in original_layout(MINI).items()} | {
        "module.classifier.weight": rng.standard_normal((CLASSES, MINI.channels[3], 1, 1), np.float32),
        "module.attn_proj.weight": 0.1 * rng.standard_normal((1, 2 * MINI.heads[3], 1, 1), np.float32),
        "module.attn_proj.bias": np.zeros(1, np.float32),
        "module.decoder.linear_pred.weight": np.zeros((11, 4, 1, 1), np.float32),
    }
    return {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}


def save_without(tensors, names, path):
    torch.save({name: tensor for name, tensor in tensors.items() if not name.endswith(names)}, path)
    return str(path)


@pytest.fixture(scope="module")
def scored(peer, tmp_path_factory):
    """The file of weights, the work directory, what came out of scoring it, and what was printed."""
    folder = tmp_path_factory.mktemp("scored")
    weights, workdir = str(folder / "peer.pth"), folder / "new" / "workdir"
    torch.save({"state_dict": peer, "iteration": 9}, weights)
    return weights, workdir, *evaluate_run(tiny_config(), workdir, "val", weights)


def test_weights_of_a_peer_are_scored(scored):
    weights, workdir, metrics, page = scored
    assert json.loads((workdir / "eval" / "metrics.json").read_text()) == metrics
    assert (metrics["dataset"], metrics["split"], metrics["images"]) == ("digits", "val", 3)
    assert metrics["weights"] == weights
    assert "step" not in metrics
    stages = {"cam", "affinity", "par"}
    assert {p: set(scores) for p, scores in metrics["miou"].items()} == {"predicted": stages, "given": stages}
    assert page == workdir / "eval" / "report.html"
    assert {path.name for path in workdir.rglob("*")} == {"eval", "metrics.json", "report.html"}


def test_what_was_scored_is_shown(scored):
    weights, _, metrics, page = scored
    assert score_table(metrics).startswith(f"digits val, 3 images, weights {weights} (scores in %)\n")
    text = page.read_text()
    assert f"<dt>weights</dt><dd>{weights}</dd>" in text
    assert f"digits val, 3 images, weights {weights}" in text
    assert "started from" not in text, "of that nothing is known"


def test_converted_weights_score_the_same(scored, tmp_path, capsys):
    weights, _, metrics, _ = scored
    converted = tmp_path / "converted.safetensors"
    convert(weights, converted, "rml_jax")
    again, _ = evaluate_run(tiny_config(), tmp_path / "run", "val", str(converted))
    assert again == metrics | {"weights": str(converted)}
    out = capsys.readouterr().out
    assert f"{converted} (rml_jax layout): " in out
    assert "fresh: fusion/bias, fusion/kernel (not in the file)" in out


class ScoringBeganError(Exception):
    pass


def test_affinity_head_is_needed_for_its_stage_alone(peer, tmp_path, monkeypatch):
    def begin(*arguments):
        raise ScoringBeganError

    monkeypatch.setattr(run, "Evaluator", begin)
    weights = save_without(peer, ("attn_proj.weight", "attn_proj.bias"), tmp_path / "peer.pth")
    with pytest.raises(ScoringBeganError):
        evaluate_run(tiny_config("cam", "par"), tmp_path / "run", "val", weights)
    with pytest.raises(UserError, match="the stages cam, affinity can't be scored without it") as caught:
        evaluate_run(tiny_config("cam", "affinity"), tmp_path / "other", "val", weights)
    message = str(caught.value)
    assert message.startswith(f"{weights}: affinity/")
    assert "is not in the file" in message
    assert "config.eval.stages" in message
    assert "\n" not in message
    assert not (tmp_path / "other").exists()


def other_classes(peer):
    return peer | {"module.classifier.weight": torch.ones(20, MINI.channels[3], 1, 1)}


def no_classifier(peer):
    return {name: tensor for name, tensor in peer.items() if "classifier" not in name}


def another_depth(peer):
    return {name: tensor for name, tensor in peer.items() if "block4.1" not in name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            other_classes,
            ["classifier/kernel is of shape (128, 20) in the file, expected (128, 10)", "class_names"],
        ),
        (no_classifier, ["classifier/kernel is not in the file"]),
        (another_depth, ["expected MiT-mini", "missing: backbone/stages/3/blocks/1/"]),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, words, peer, tmp_path):
    weights = tmp_path / "peer.pth"
    torch.save(change(peer), weights)
    with pytest.raises(UserError) as caught:
        evaluate_run(tiny_config("cam"), tmp_path / "run", "val", str(weights))
    message = str(caught.value)
    assert message.startswith(str(weights))
    assert all(word in message for word in words), message
    assert not (tmp_path / "run").exists()


def test_workdir_that_is_a_file_is_refused_before_scoring(peer, tmp_path):
    weights = save_without(peer, (), tmp_path / "peer.pth")
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match=f"--workdir={tmp_path / 'run'}: .*expected a folder to write to"):
        evaluate_run(tiny_config("cam"), tmp_path / "run", "val", weights)
    assert (tmp_path / "run").read_text() == "mine"
