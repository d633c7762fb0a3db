"""Checkpoints: what was saved comes back bit for bit, for training and for evaluation."""

import errno
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rml_jax.checkpoint import Checkpoints
from rml_jax.models import RML, RMLConfig
from rml_jax.training.optimizer import OptimizerConfig, make_optimizer
from rml_jax.training.step import TrainState
from rml_jax.utils.errors import UserError
from tests.references.networks import SMALL_BACKBONE

OPTIMIZER = OptimizerConfig(0.02, 0.05, weight_decay=0.1, warmup_steps=4, total_steps=20, freeze_norms=True)
ITERATOR_STATE = {"next_index": 17, "nested": {"epoch": [1, 2]}}
RUN = {"workers": 2, "class_names": ["cat", "dog"], "window": {"sums": {"loss": 0.1 + 0.2}}}


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


def save(workdir, *states, iterator_state=ITERATOR_STATE, losses=(), **options):
    checkpoints = Checkpoints(workdir, **{"keep": 3, **options})
    for number, state in enumerate(states):
        metrics = {"loss": losses[number]} if losses else {}
        checkpoints.save(state, iterator_state, RUN, metrics)
    checkpoints.wait()
    checkpoints.close()


def read(workdir, method, *arguments):
    checkpoints = Checkpoints(workdir, best_metric="loss")
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
    restored, iterator_state, run = read(tmp_path, "restore", other_state)
    assert {name: run[name] for name in RUN} == RUN
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
    restored, _, _ = read(tmp_path, "restore", state)
    assert int(restored.step) == 10
    assert_equal(restored.params, other_state.params)
    step, params = read(tmp_path, "restore_params", state.params)
    assert step == 10
    assert_equal(params, other_state.params)


def test_best_and_named_checkpoints(tmp_path, state, other_state):
    states = at_step(state, 10), at_step(other_state, 20), at_step(state, 30)
    save(tmp_path, *states, losses=(0.3, 0.1, 0.2), best_metric="loss")
    step, params = read(tmp_path, "restore_params", state.params, "best")
    assert step == 20
    assert_equal(params, other_state.params)
    assert read(tmp_path, "restore_params", state.params, "10")[0] == 10
    with pytest.raises(UserError, match=r"eval\.checkpoint is '15': .* holds the steps 10, 20, 30"):
        read(tmp_path, "restore_params", state.params, "15")


def test_a_named_checkpoint_is_not_replaced_by_another(tmp_path, state):
    save(tmp_path, at_step(state, 9), at_step(state, 10))
    shutil.rmtree(tmp_path / "checkpoints" / "10" / "run")
    with pytest.raises(UserError, match=r"step 10 .*no run in it: incomplete, or another version's"):
        read(tmp_path, "restore_params", state.params, "10")
    assert read(tmp_path, "restore_params", state.params, "newest")[0] == 9


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
    restored, iterator_state, _ = read(tmp_path, "restore", other_state)
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


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_bits(path):
    content = bytearray(path.read_bytes())
    content[::64] = bytes(byte ^ 1 for byte in content[::64])  # not all bytes of a file are in use
    path.write_bytes(content)


@pytest.mark.parametrize("spoil", [truncate, flip_bits, Path.unlink])
def test_damaged_checkpoint_is_passed_over_and_its_step_can_be_saved_anew(
    tmp_path, state, other_state, capsys, spoil
):
    save(tmp_path, at_step(state, 9), at_step(other_state, 10))
    # Every file, as some are not needed to read the arrays.
    for path in (tmp_path / "checkpoints" / "10" / "state").rglob("d/*"):
        spoil(path)
    checkpoints = Checkpoints(tmp_path, keep=3)
    restored = checkpoints.restore(other_state).state
    assert_equal(restored.optimizer, state.optimizer)
    message = capsys.readouterr().err
    assert "damaged step 10 (" in message
    assert "step 9 is used instead" in message
    checkpoints.save(at_step(other_state, 10), ITERATOR_STATE, RUN, {})
    checkpoints.wait()
    checkpoints.close()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"9", "10", "damaged-10"}
    assert int(read(tmp_path, "restore", state).state.step) == 10


def change_a_byte(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def replace_in(path, old, new):
    path.write_bytes(path.read_bytes().replace(old, new))


@pytest.fixture(scope="module")
def two_steps(state, other_state, tmp_path_factory):
    """A folder with the checkpoints 9 and 10, of which 10 is the better one."""
    workdir = tmp_path_factory.mktemp("sound")
    save(workdir, at_step(state, 9), at_step(other_state, 10), losses=(0.5, 0.3), best_metric="loss")
    return workdir


def damage(two_steps, tmp_path, name, place):
    workdir = tmp_path / "damaged"
    shutil.copytree(two_steps, workdir)
    change_a_byte(workdir / "checkpoints" / "10" / name, place)
    return workdir


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("data/metadata", b"17"),
        ("run/metadata", b"cat"),
        ("run/metadata", b"0.3"),
        ("metrics/metrics", b"0.3"),
    ],
)
def test_a_changed_byte_that_leaves_sound_json_is_noticed_on_resuming(
    two_steps, tmp_path, state, capsys, name, word
):
    """orbax returns the other number."""
    place = (two_steps / "checkpoints" / "10" / name).read_bytes().index(word) + len(word) - 1
    workdir = damage(two_steps, tmp_path, name, place)
    assert int(read(workdir, "restore", state).state.step) == 9
    assert "damaged step 10 (" in capsys.readouterr().err


def test_a_changed_byte_in_the_metrics_does_not_change_what_is_best(two_steps, tmp_path, state, capsys):
    """orbax reads the best checkpoint from `metrics`: 0.3 becomes 2.3."""
    shutil.copytree(two_steps, tmp_path / "damaged")
    folder = tmp_path / "damaged" / "checkpoints" / "10"
    replace_in(folder / "metrics" / "metrics", b"0.3", b"2.3")
    assert read(tmp_path / "damaged", "restore_params", state.params, "best")[0] == 10
    replace_in(folder / "run" / "metadata", b"0.3", b"0.2")
    assert read(tmp_path / "damaged", "restore_params", state.params, "best")[0] == 9
    assert "damaged step 10 (ValueError: run has the checksum" in capsys.readouterr().err


def test_metrics_that_are_no_json_are_a_users_error(two_steps, tmp_path, state):
    workdir = damage(two_steps, tmp_path, "metrics/metrics", 0)
    with pytest.raises(UserError, match="metrics is damaged"):
        read(workdir, "restore", state)


@pytest.mark.slow
def test_a_changed_byte_in_any_file_is_noticed_or_harmless(two_steps, tmp_path, state, other_state):
    """Whatever byte changes, a restore gives what was saved in that step, or the step before."""
    folder = two_steps / "checkpoints" / "10"
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    expected = {9: state, 10: other_state}
    for number, name in enumerate(names):
        for share in (0.3, 0.9):
            place = int((folder / name).stat().st_size * share)
            workdir = damage(two_steps, tmp_path / f"{number}-{share}", name, place)
            step, params = read(workdir, "restore_params", state.params)
            assert_equal(params, expected[step].params)
            restored, data, run = read(workdir, "restore", state)
            assert_equal(restored.params, expected[int(restored.step)].params)
            assert_equal(restored.optimizer, expected[int(restored.step)].optimizer)
            assert data == ITERATOR_STATE
            assert run["metrics"] == {"loss": {9: 0.5, 10: 0.3}[int(restored.step)]}


def test_evaluation_passes_over_damage_and_leaves_it_as_it_is(tmp_path, state, other_state, capsys):
    save(tmp_path, at_step(state, 9), at_step(other_state, 10))
    (tmp_path / "checkpoints" / "10" / "state" / "manifest.ocdbt").unlink()
    before = files(tmp_path)
    step, params = read(tmp_path, "restore_params", state.params)
    assert step == 9
    assert_equal(params, state.params)
    assert "damaged step 10 (" in capsys.readouterr().err
    assert files(tmp_path) == before


def test_run_without_a_sound_checkpoint_is_refused(tmp_path, state):
    save(tmp_path, at_step(state, 9))
    (tmp_path / "checkpoints" / "9" / "data" / "metadata").unlink()
    with pytest.raises(UserError, match="can't be read: step 9"):
        read(tmp_path, "restore", state)


def test_the_best_is_kept_beside_the_newest(tmp_path, state):
    steps = [at_step(state, step) for step in (10, 20, 30, 40)]
    save(tmp_path, *steps, keep=1, keep_best=1, best_metric="loss", losses=(0.5, 0.3, float("nan"), 0.4))
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"20", "40"}


def test_half_written_checkpoint_of_a_killed_run_is_ignored_and_removed(tmp_path, state):
    save(tmp_path, at_step(state, 9))
    half = tmp_path / "checkpoints" / "10.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "9", half)
    assert int(read(tmp_path, "restore", state).state.step) == 9
    assert half.exists(), "reading leaves the folder as it is"
    save(tmp_path, at_step(state, 11))
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"9", "11"}


def test_error_in_the_background_surfaces_and_names_the_last_good_checkpoint(tmp_path, state, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(at_step(state, 9), ITERATOR_STATE, RUN, {})
    checkpoints.wait()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # Each checkpoint is complete once it is renamed, which happens in the background.
    monkeypatch.setattr(os, "rename", full)
    checkpoints.save(at_step(state, 10), ITERATOR_STATE, RUN, {})
    with pytest.raises(UserError, match=r"can't be saved \(No space left.*; the last good .* of step 9;"):
        checkpoints.wait()
    monkeypatch.undo()
    checkpoints.close()
    assert int(read(tmp_path, "restore", state).state.step) == 9
