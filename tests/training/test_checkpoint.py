"""Checkpoints: what was saved comes back bit for bit, for training and for evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.parity.networks import SMALL_BACKBONE
from rml_jax.errors import UserError
from rml_jax.models import RML, RMLConfig
from rml_jax.training.checkpoint import Checkpoints
from rml_jax.training.optimizer import OptimizerConfig, make_optimizer
from rml_jax.training.step import TrainState

OPTIMIZER = OptimizerConfig(0.02, 0.05, weight_decay=0.1, warmup_steps=4, total_steps=20, freeze_norms=True)
ITERATOR_STATE = {"next_index": 17, "nested": {"epoch": [1, 2]}}


def make_params(build, seed=0, num_classes=3):
    config = RMLConfig(SMALL_BACKBONE, num_classes=num_classes, context_channels=5)
    return nnx.split(build(lambda: RML(config, rngs=nnx.Rngs(0)), seed))[1]


@pytest.fixture(scope="module")
def state(build):
    """A train state with nothing left at its initial value."""
    params = make_params(build)
    optimizer = make_optimizer(OPTIMIZER, params)
    rng = np.random.default_rng(1)
    gradients = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), params)
    _, optimizer_state = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    return TrainState(jnp.int32(7), params, optimizer_state, jax.random.key(123))


@pytest.fixture(scope="module")
def other_state(build, state):
    """Same shapes, other numbers: what a resumed run starts with."""
    optimizer = make_optimizer(OPTIMIZER, state.params)
    params = make_params(build, seed=9)
    return TrainState(jnp.int32(0), params, optimizer.init(params), jax.random.key(5))


def at_step(state, step):
    return state._replace(step=jnp.int32(step))


def save(workdir, *states, keep=3, iterator_state=ITERATOR_STATE):
    checkpoints = Checkpoints(workdir, keep=keep)
    for state in states:
        checkpoints.save(state, iterator_state)
    checkpoints.close()


def read(workdir, method, *arguments):
    checkpoints = Checkpoints(workdir)
    try:
        return getattr(checkpoints, method)(*arguments)
    finally:
        checkpoints.close()


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_round_trip(tmp_path, state, other_state):
    save(tmp_path, state)
    restored, iterator_state = read(tmp_path, "restore", other_state)
    assert int(restored.step) == 7
    assert restored.step.dtype == jnp.int32
    assert_equal(restored.params, state.params)
    assert_equal(restored.optimizer, state.optimizer)
    assert restored.key.dtype == state.key.dtype
    draw = [jax.random.normal(key, (3,)) for key in (restored.key, state.key, other_state.key)]
    np.testing.assert_array_equal(draw[0], draw[1])
    assert (draw[0] != draw[2]).all()
    assert iterator_state == ITERATOR_STATE


def test_parameters_alone_need_shapes_only(tmp_path, state):
    save(tmp_path, state)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state.params)
    step, params = read(tmp_path, "restore_params", shapes)
    assert step == 7
    assert_equal(params, state.params)


def test_newest_checkpoint_is_restored(tmp_path, state, other_state):
    save(tmp_path, at_step(state, 9), at_step(other_state, 10))
    restored, _ = read(tmp_path, "restore", state)
    assert int(restored.step) == 10
    assert_equal(restored.params, other_state.params)
    step, params = read(tmp_path, "restore_params", state.params)
    assert step == 10
    assert_equal(params, other_state.params)


def test_nothing_to_restore(tmp_path, state):
    assert read(tmp_path, "restore", state) is None
    with pytest.raises(UserError) as caught:
        read(tmp_path, "restore_params", state.params)
    assert str(caught.value).startswith(f"{tmp_path / 'checkpoints'}: no checkpoint")


def test_reading_leaves_the_folder_as_it_is(tmp_path, state):
    read(tmp_path, "restore", state)
    assert files(tmp_path) == []
    (tmp_path / "checkpoints").mkdir()
    read(tmp_path, "restore", state)
    assert files(tmp_path) == ["checkpoints"]
    save(tmp_path, state)
    before = files(tmp_path)
    read(tmp_path, "restore_params", state.params)
    assert files(tmp_path) == before


def test_only_the_newest_are_kept(tmp_path, state):
    save(tmp_path, *(at_step(state, step) for step in (10, 20, 30, 40)), keep=2)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"30", "40"}


def test_saving_a_step_twice_keeps_the_first(tmp_path, state, other_state):
    save(tmp_path, at_step(state, 5), at_step(other_state, 5))
    save(tmp_path, at_step(other_state, 5), iterator_state={"next_index": 99})
    restored, iterator_state = read(tmp_path, "restore", other_state)
    assert_equal(restored.params, state.params)
    assert iterator_state == ITERATOR_STATE


def test_parameters_of_another_network_are_refused(tmp_path, build, state):
    save(tmp_path, state)
    before = files(tmp_path)
    with pytest.raises(UserError) as caught:
        read(tmp_path, "restore_params", make_params(build, num_classes=4))
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "classifier/kernel is of shape (8, 3), expected (8, 4)" in message
    assert "\n" not in message
    assert files(tmp_path) == before


def test_missing_parameters_are_refused(tmp_path, state):
    save(tmp_path, state)
    larger = {"extra": jnp.zeros(2), "params": state.params}
    with pytest.raises(UserError, match=r"extra is missing, expected \(2,\)"):
        read(tmp_path, "restore_params", larger)
