"""The training loop end to end on tiny images: the files of a run, resuming, and errors."""

import io
import json
import os
import signal

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from configs import digits
from rml_jax.checkpoint import Checkpoints
from rml_jax.config import load_config
from rml_jax.evaluation.localization import SHARES
from rml_jax.models import BACKBONES
from rml_jax.models.weights import save_transformers, save_weights
from rml_jax.report import score_table
from rml_jax.report.evaluation import evaluate_run
from rml_jax.report.training import read_events
from rml_jax.training import loop
from rml_jax.training.runlog import RunLog
from rml_jax.training.sharding import make_mesh
from rml_jax.training.workdir import occupy
from rml_jax.utils.errors import Interrupted, UserError


def tiny_config():
    """Four steps, two of them with mutual learning, crossing two epochs of five scenes."""
    config = digits.get_config()
    config.data.num_train, config.data.num_val = 5, 3
    config.data.scene.size, config.data.scene.digit_size = 32, (14, 20)
    config.model.drop_path_rate = 0.1
    config.pseudo_label.dilations = (1, 2)
    config.loss.start_step = 2
    config.train.steps, config.train.batch_size, config.train.crop_size = 4, 2, 32
    config.checkpoint.every, config.checkpoint.keep = 2, 5
    config.log.every, config.log.pictures_every = 1, 4
    config.eval.canvases, config.eval.batch_size, config.eval.pictures = ((32, 32),), 2, 2
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run: its work directory and final train state."""
    workdir = tmp_path_factory.mktemp("run") / "new" / "workdir"
    return workdir, loop.train(tiny_config(), workdir)


def test_run_leaves_config_checkpoints_and_tensorboard_files(finished):
    workdir, state = finished
    assert int(state.step) == 4
    assert load_config(workdir / "config.json").to_dict() == tiny_config().to_dict()
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"2", "4"}
    assert list(workdir.glob("events.out.tfevents.*"))


def test_run_keeps_scalars_and_images_for_the_report(finished):
    workdir, _ = finished
    scalars, images = read_events(workdir)
    assert list(scalars["train/loss"]) == [1, 2, 3, 4]
    assert list(scalars["train/ciml"]) == [3, 4]
    assert sorted((tag, *steps) for tag, steps in images.items()) == [
        ("cams", 4),
        ("images", 4),
        ("validation", 4),
    ]
    # Three scenes, each 32 pixels enlarged to 128, with gaps of 4.
    sizes = {Image.open(io.BytesIO(images[tag][4])).size for tag in ("cams", "images")}
    assert sizes == {(3 * 128 + 2 * 4, 128)}


def logged(workdir):
    """All of a run's log that does not depend on the time."""
    entries = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in entry.items() if not name.startswith("speed/")} for entry in entries
    ]


def test_log_has_every_loss_the_rates_and_the_time_spent_waiting(finished):
    workdir, _ = finished
    entries = logged(workdir)
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4]
    assert "ciml" not in entries[1]
    assert {"loss", "classification", "ciml", "mfml", "apml", "gradient_norm", "skipped"} <= entries[3].keys()
    # Linear warm-up over 50 steps from 1e-6 of 1e-3: the fourth update is made at 3 / 50 of it.
    assert entries[3]["learning_rate/backbone"] == pytest.approx(6e-5, rel=1e-3)
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 <= last["speed/waiting_for_data"] < 1


def test_images_come_with_measures_of_localization(finished):
    scalars, images = read_events(finished[0])
    assert list(images["validation"]) == [4]
    for name in SHARES:
        assert list(scalars[f"validation/{name}"]) == [4]
        assert 0 <= scalars[f"validation/{name}"][4] <= 1


def test_run_says_first_what_it_is(finished):
    workdir, _ = finished
    (start,) = json.loads((workdir / "environment.json").read_text())
    assert start["versions"]["jax"] == jax.__version__
    assert start["processes"] == 1


def test_run_interrupted_by_sigterm_and_resumed_equals_the_uninterrupted_one(finished, tmp_path, monkeypatch):
    """Bit for bit: parameters, optimizer and log; over epochs' ends, with stochastic depth."""
    workdir, state = finished
    config = tiny_config()
    config.checkpoint.every = 100
    seen = []

    def pull(self, number):
        seen.append(number)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunLog, "waited", pull)
    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 3, which is saved") as caught:
        loop.train(config, tmp_path)
    assert caught.value.status == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    resumed = loop.train(config, tmp_path)
    same = jax.tree.map(np.array_equal, (state.params, state.optimizer), (resumed.params, resumed.optimizer))
    assert all(jax.tree.leaves(same))
    assert logged(tmp_path) == logged(workdir)


def test_second_training_in_a_workdir_is_refused(finished):
    workdir, _ = finished
    lock = occupy(workdir)
    with pytest.raises(UserError, match=rf"is in use by process {os.getpid()} on "):
        loop.train(tiny_config(), workdir)
    lock.close()


def test_read_only_workdir_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(UserError, match="is read-only, expected a folder to write to"):
        loop.train(tiny_config(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_finished_run_is_not_trained_again(finished):
    workdir, state = finished
    again = loop.train(tiny_config(), workdir)
    assert int(again.step) == 4
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, state.params, again.params)))


def test_another_config_is_refused_and_named(finished):
    workdir, _ = finished
    config = tiny_config()
    config.loss.ciml = 0.7
    config.train.steps = 7
    before = sorted(workdir.rglob("*"))
    with pytest.raises(UserError, match=r"\(loss\.ciml is 0\.7, was 0\.1\): "):
        loop.train(config, workdir)
    assert sorted(workdir.rglob("*")) == before


def test_evaluation_scores_the_last_checkpoint(finished):
    workdir, _ = finished
    metrics, page = evaluate_run(load_config(workdir / "config.json"), workdir, "val")
    assert json.loads((workdir / "eval" / "metrics.json").read_text()) == metrics
    assert (metrics["dataset"], metrics["split"], metrics["images"], metrics["step"]) == (
        "digits",
        "val",
        3,
        4,
    )
    stages = {"cam", "affinity", "par", "crf"}
    assert {p: set(scores) for p, scores in metrics["miou"].items()} == {"predicted": stages, "given": stages}
    values = [score for scores in metrics["miou"].values() for score in scores.values()]
    assert all(0 <= value <= 1 for value in values)
    assert set(metrics["iou"]["given"]["par"]) == {"background", *map(str, range(10))}
    assert "mIoU predicted tags" in score_table(metrics)
    # The first two, the worst two and the best two.
    assert page.read_text().count("<section>") == 6


def test_run_starts_from_weights(finished, tmp_path):
    _, state = finished
    save_weights(state.params, tmp_path / "start.safetensors")
    config = tiny_config()
    config.model.init_from = str(tmp_path / "start.safetensors")
    mesh = make_mesh(config.train.batch_size)
    _, started, *_ = loop._initial_state(config, mesh)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, state.params, started.params)))


def test_run_starts_from_a_folder_of_transformers(finished, tmp_path, capsys):
    _, state = finished
    save_transformers(state.params, BACKBONES["mini"](), tmp_path / "model")
    config = tiny_config()
    mesh = make_mesh(config.train.batch_size)
    config.model.init_from = str(tmp_path / "model")
    _, started, *_ = loop._initial_state(config, mesh)
    same = nnx.to_pure_dict(jax.tree.map(np.array_equal, state.params, started.params))
    assert all(jax.tree.leaves(same["backbone"]))
    assert not any(same[head]["kernel"] for head in ("classifier", "affinity", "fusion")), (
        "heads start afresh"
    )
    assert f"started from {tmp_path / 'model'} (transformers layout): " in capsys.readouterr().out


def test_pretrained_start_freezes_the_norms_and_scratch_does_not(finished):
    config = tiny_config()
    _, state = finished
    _, fresh, *_ = loop._initial_state(config, make_mesh(2))
    moved = nnx.to_pure_dict(jax.tree.map(lambda a, b: not np.array_equal(a, b), fresh.params, state.params))
    assert moved["backbone"]["stages"][3]["norm"]["scale"]


def test_batch_that_devices_cannot_share_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    with pytest.raises(UserError, match=r"batch_size is 2: expected a multiple of the 8 devices"):
        loop.train(tiny_config(), tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_workdir_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="expected a folder to write to"):
        occupy(tmp_path / "file" / "below")


def test_empty_work_directory_cannot_be_evaluated(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        evaluate_run(tiny_config(), tmp_path, "val")
    assert Checkpoints(tmp_path).restore(None) is None
