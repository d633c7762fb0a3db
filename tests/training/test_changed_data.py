"""A run that is resumed after its data have moved or changed."""

import json

import numpy as np
import optax
import pytest
from PIL import Image

from configs import folder
from rml_jax.checkpoint import Checkpoints
from rml_jax.training import loop
from rml_jax.training.optimizer import SCHEDULES
from rml_jax.utils.errors import UserError


@pytest.fixture(autouse=True)
def constant_rate(monkeypatch):
    """A rate that does not depend on the number of steps, so that runs of different length share a program."""
    monkeypatch.setitem(SCHEDULES, "constant", lambda base, config: optax.constant_schedule(base))


@pytest.fixture
def photos(tmp_path):
    """A folder of six photographs of noise and its tag file."""
    root = tmp_path / "data" / "photos"
    root.mkdir(parents=True)
    for number in range(6):
        write_photo(root, f"{number}.png")
    rows = [f"{number}.png,{'ab'[number % 2]}\n" for number in range(6)]
    (root.parent / "tags.csv").write_text("image,tags\n" + "".join(rows))
    return root


def write_photo(root, name):
    pixels = np.random.default_rng(len(list(root.iterdir()))).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(root / name)


def train(root, steps, **data):
    config = folder.get_config("small")
    config.model.variant = "mini"
    config.data.root, config.data.tags = str(root), str(root.parent / "tags.csv")
    config.data.val_fraction = 0.0
    config.train.steps, config.train.batch_size, config.train.crop_size = steps, 2, 32
    config.checkpoint.every, config.log.every, config.log.pictures_every = 1, 1, 0
    config.eval.canvases = ((64, 64),)
    config.optimizer.schedule = "constant"
    config.data.update(data)
    return loop.train(config, root.parent.parent / "run")


def test_changed_images_stop_a_run_before_its_next_step(tmp_path, photos, capsys):
    run = tmp_path / "run"
    train(photos, 1)
    moved = photos.parent.rename(tmp_path / "elsewhere") / "photos"
    tags = moved.parent / "tags.csv"
    train(moved, 2)  # Moved paths don't matter.
    assert "resumed at step 1" in capsys.readouterr().out

    before = tags.read_text()
    write_photo(moved, "new.png")
    (moved / "3.png").unlink()
    changed = before.replace("2.png,a", "2.png,b").replace("3.png,b\n", "") + "new.png,a\n"
    tags.write_text(changed)
    config_before = (run / "config.json").read_text()
    with pytest.raises(UserError) as error:
        train(moved, 3)
    message = str(error.value)
    assert "1 added (new), 1 removed (3), 1 with other tags (2)" in message
    assert "--config.data.allow_changes=True" in message
    assert "\n" not in message
    assert (run / "config.json").read_text() == config_before

    train(moved, 3, allow_changes=True)
    assert "1 added (new)" in capsys.readouterr().out
    state = train(moved, 4)  # Changes that were allowed once are the run's own.
    assert int(state.step) == 4
    assert len(json.loads((run / "environment.json").read_text())) == 4


def test_checkpoints_without_a_list_of_images_resume(photos, monkeypatch):
    save = Checkpoints.save

    def save_as_before(self, state, data, run, metrics):
        save(self, state, data, {key: value for key, value in run.items() if key != "items"}, metrics)

    with monkeypatch.context() as before:
        before.setattr(Checkpoints, "save", save_as_before)
        train(photos, 1)
    tags = photos.parent / "tags.csv"
    tags.write_text(tags.read_text().replace("2.png,a", "2.png,b"))
    assert int(train(photos, 2).step) == 2
