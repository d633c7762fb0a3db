"""A learning-rate schedule from outside the package: the optimizer follows it and the log shows it."""

import json

import numpy as np
import optax
import pytest

from configs import digits_small
from rml_jax.models import build
from rml_jax.training.loop import train
from rml_jax.training.optimizer import SCHEDULES, optimizer_config
from rml_jax.training.sharding import init_model, make_mesh
from rml_jax.utils.errors import UserError


def halved(base, config):
    """Half of the base rate, falling along a cosine."""
    return optax.cosine_decay_schedule(base / 2, config.total_steps)


def config_of(schedule):
    config = digits_small.get_config("baseline")
    config.optimizer.schedule = schedule
    config.optimizer.head_lr, config.optimizer.weight_decay = 0.02, 0.0
    config.train.steps, config.train.batch_size = 1, 2
    config.log.pictures_every = 0
    return config


def test_schedule_from_outside_is_followed_and_logged(monkeypatch, tmp_path):
    monkeypatch.setitem(SCHEDULES, "halved", halved)
    config = config_of("halved")
    state = train(config, tmp_path)
    (entry,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert entry["learning_rate/heads"] == pytest.approx(0.01)
    _, initial = init_model(lambda: build.build_model(config, config.train.seed), make_mesh(2))
    change = np.asarray(state.params["classifier"]["kernel"][...] - initial["classifier"]["kernel"][...])
    # The first update of Adam is the learning rate times the sign of the gradient.
    assert np.abs(change).max() == pytest.approx(0.01, rel=1e-3)


def test_unknown_schedule_is_refused():
    with pytest.raises(
        UserError, match=r"config.optimizer.schedule is 'cosine': expected one of warmup_poly"
    ):
        optimizer_config(config_of("cosine"))
