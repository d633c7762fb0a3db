"""Checkpoints of a run, by orbax: `DIR/checkpoints/STEP`, where STEP is the number of batches trained on.

Each has three items: `state` (parameters, optimizer, random key, step), `data` (state of the data iterator) and
`run` (configuration, class names, versions, metrics, ..., and checksums of all three items).
"""

import contextlib
import errno
import json
import logging
import math
import os
import shutil
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from rml_jax.utils.distributed import on_first_process
from rml_jax.utils.errors import UserError
from rml_jax.utils.files import json_checksum
from rml_jax.utils.trees import named_leaves, with_leaves

ITEMS = ("state", "data", "run")
"""The folders of a checkpoint."""


class Restored(NamedTuple):
    """A restored checkpoint.

    Attributes:
      state: TrainState.
      data: state of the data iterator.
      run: the `run` given to `Checkpoints.save`.
    """

    state: Any
    data: Any
    run: dict


class Checkpoints:
    """The checkpoints of one work directory.

    Saving runs in the background; `check` raises its errors, `wait` and `close` wait for it. A checkpoint is renamed
    to its final name when it is complete, so an interruption while saving leaves earlier checkpoints intact. A
    checkpoint that can't be read, or whose checksums differ from those at saving, is skipped with a message, and the
    one before it is used.

    Args:
      workdir: pathlib.Path of the run.
      keep: number of newest checkpoints to keep; None opens the folder for reading only.
      keep_best: number of further checkpoints to keep, those with the lowest `best_metric`.
      best_metric: name of one of the metrics given to `save`.
    """

    def __init__(self, workdir, keep=None, keep_best=0, best_metric=""):
        self._directory = (workdir / "checkpoints").absolute()
        self._writes = keep is not None

        def merit(metrics):
            value = metrics.get(best_metric, math.inf)
            return -value if math.isfinite(value) else -math.inf

        self._merit = merit
        best = BestN(get_metric_fn=merit, n=keep_best, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            create=self._writes,
            cleanup_tmp_directories=self._writes,  # incomplete checkpoints of a killed run
            preservation_policy=AnyPreservationPolicy([LatestN(keep), best]),
            best_fn=merit,
        )
        try:
            self._manager = ocp.CheckpointManager(self._directory, options=options)
        except OSError as error:
            raise UserError(f"{self._directory}: {error.strerror}, expected a folder to write to") from error
        except ValueError as error:  # json's, of a checkpoint's metrics
            raise UserError(
                f"{self._directory}: a file STEP/metrics/metrics is damaged ({error}), expected JSON: remove that "
                "checkpoint"
            ) from error

    def steps(self):
        """Returns the steps of the existing checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def best_step(self):
        """Returns the step with the lowest best metric, of those whose `run` is sound; None where there is none."""
        merits = []
        for step in self.steps():
            try:
                merits.append((self._merit(self._read_run(step)["metrics"]), step))
            except (OSError, ValueError, LookupError, TypeError) as error:
                print(
                    f"{self._directory}: damaged step {step} ({_reason(error)}) is passed over",
                    file=sys.stderr,
                )
        return max(merits)[1] if merits else None

    def save(self, state, data, run, metrics):
        """Saves a train state under its step, unless that step is already saved.

        Args:
          state: TrainState.
          data: JSON-like state of the data iterator.
          run: JSON-like dict of further data of the run.
          metrics: dict of floats.

        Raises:
          UserError: if this checkpoint or the one before it can't be written.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        tree, run = _to_tree(state), {**run, "metrics": metrics}
        checksums = {**_checksums(tree), "data": json_checksum(data), "run": json_checksum(run)}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(tree),
            data=ocp.args.JsonSave(data),
            run=ocp.args.JsonSave({**run, "checksums": checksums}),
        )
        with self._reporting():
            self._manager.save(step, args=items, metrics=metrics)

    def check(self):
        """Raises a UserError if a checkpoint could not be written in the background."""
        with self._reporting():
            self._manager.check_for_errors()

    def wait(self):
        """Waits until everything is saved. Raises a UserError if saving failed."""
        with self._reporting():
            self._manager.wait_until_finished()

    def restore(self, state):
        """Restores the newest intact checkpoint.

        Newer, damaged ones are renamed to `damaged-STEP`, so that their steps can be saved again.

        Args:
          state: TrainState with the wanted shapes, types and shardings, arrays or jax.ShapeDtypeStruct. The shardings
            may differ from those at saving.

        Returns:
          Restored, or None if there is no checkpoint.

        Raises:
          UserError: if there are checkpoints, but none is intact.
        """
        if not self.steps():
            return None
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, _to_tree(state))

        def read(step):
            items = ocp.args.Composite(state=ocp.args.StandardRestore(wanted), data=ocp.args.JsonRestore())
            found, run = self._manager.restore(step, args=items), self._read_run(step)
            _compare_sums({**_checksums(found.state), "data": json_checksum(found.data)}, run["checksums"])
            # By its own copy, orbax chooses which checkpoints to keep.
            if json_checksum(self._manager.metrics(step) or {}) != json_checksum(run["metrics"]):
                raise ValueError("metrics differ from those that were saved")
            return Restored(_from_tree(found.state, state), found.data, run)

        step, restored = self._newest_sound(read, self.steps())
        if self._writes:
            self._set_aside([other for other in self.steps() if other > step])
        return restored

    def restore_params(self, params, which="newest"):
        """Restores the parameters of one checkpoint.

        Args:
          params: nnx.State with the wanted shapes and types.
          which: "newest", the newest intact checkpoint; "best", that of `best_step`; or a step in digits.

        Returns:
          step (int) and the parameters.

        Raises:
          UserError: if there is no such checkpoint, it is damaged, or it holds another network's parameters.
        """
        steps = self.steps()
        if not steps:
            raise UserError(f"{self._directory}: no checkpoint, expected at least one from `rml-jax train`")
        if which != "newest":
            wanted_step = self.best_step() if which == "best" else int(which)
            if wanted_step not in steps:
                raise UserError(
                    f"config.eval.checkpoint is {which!r}: {self._directory} holds the steps "
                    f"{', '.join(map(str, steps))}"
                )
            steps = [wanted_step]
        wanted = {"params": jax.tree.map(ocp.utils.to_shape_dtype_struct, named_leaves(params))}

        def read(step):
            folder = self._directory / str(step) / "state"
            handler = ocp.PyTreeCheckpointHandler()
            # orbax does not check the shapes.
            _check_shapes(folder, handler.metadata(folder).tree["params"], wanted["params"])
            restored = ocp.Checkpointer(handler).restore(
                folder,
                args=ocp.args.PyTreeRestore(
                    wanted,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                    partial_restore=True,
                ),
            )
            _compare_sums(_checksums(restored), self._read_run(step)["checksums"])
            return restored["params"]

        step, leaves = self._newest_sound(read, steps)
        return step, with_leaves(params, leaves)

    def close(self):
        """Waits until everything is saved. Errors are ignored; call `wait` first to raise them."""
        with contextlib.suppress(Exception):
            self._manager.close()

    def _read_run(self, step):
        """Returns the item `run` of a checkpoint. Raises ValueError if it is not what was saved."""
        # By json alone: orbax would wait for the other processes.
        run = json.loads((self._directory / str(step) / "run" / "metadata").read_text(encoding="utf-8"))
        others = {key: value for key, value in run.items() if key != "checksums"}
        _compare_sums({"run": json_checksum(others)}, run["checksums"])
        return run

    def _newest_sound(self, read, steps):
        """Returns the newest step for which `read(step)` succeeds, and its result."""
        reasons = {}
        for step in reversed(steps):
            try:
                _check_items(self._directory / str(step))
                with _quiet_orbax():
                    found = read(step)
            except UserError:
                raise
            except Exception as error:  # Damage shows as any error of orbax, tensorstore or json.
                reasons[step] = _reason(error)
                continue
            if reasons:
                damaged = "; ".join(f"step {other} ({reason})" for other, reason in reasons.items())
                print(f"{self._directory}: damaged {damaged}; step {step} is used instead", file=sys.stderr)
            return step, found
        damaged = "; ".join(f"step {other} ({reason})" for other, reason in reasons.items())
        raise UserError(f"{self._directory}: can't be read: {damaged}; expected a sound checkpoint")

    def _set_aside(self, steps):
        def rename():
            for step in steps:
                aside = self._directory / f"damaged-{step}"
                shutil.rmtree(aside, ignore_errors=True)
                (self._directory / str(step)).rename(aside)

        if steps:
            on_first_process(rename)
            self._manager.reload()

    @contextlib.contextmanager
    def _reporting(self):
        """Converts any failure to save into a UserError that names the last good checkpoint."""
        try:
            yield
        except Exception as error:  # orbax re-raises any exception of its threads.
            steps = self.steps()
            left = (
                f"the last good checkpoint is that of step {steps[-1]}"
                if steps
                else "there is no checkpoint yet"
            )
            raise UserError(
                f"{self._directory}: a checkpoint can't be saved ({_reason(error)}); {left}; "
                "once this is fixed, the same command continues from there"
            ) from error


def read_params(workdir, params, which="newest", best_metric=""):
    """Reads the parameters of one checkpoint of a run, without changing its folder.

    Args:
      workdir: pathlib.Path of the run.
      params, which: see `Checkpoints.restore_params`.
      best_metric: see `Checkpoints`; for "best".

    Returns:
      step (int) and the parameters.

    Raises:
      UserError: see `Checkpoints.restore_params`.
    """
    with contextlib.closing(Checkpoints(workdir, best_metric=best_metric)) as checkpoints:
        return checkpoints.restore_params(params, which)


def _reason(error):
    """Returns one short line for any exception: the operating system's message, if an OSError caused it."""
    cause = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return f"{cause.strerror}{f', {cause.filename}' if cause.filename else ''}"
        cause = cause.__cause__ or cause.__context__
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # part of a long message of tensorstore
        if os.strerror(number) in str(error):
            return os.strerror(number)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"


@contextlib.contextmanager
def _quiet_orbax():
    """Suppresses the stack traces that orbax's coroutines print for each array of a damaged checkpoint."""
    before, asyncio_log = sys.unraisablehook, logging.getLogger("asyncio")
    level = asyncio_log.level
    sys.unraisablehook = lambda _: None
    asyncio_log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        sys.unraisablehook = before
        asyncio_log.setLevel(level)


@jax.jit
def _sums(tree):
    def bits(leaf):
        unsigned = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
        return jnp.sum(unsigned, dtype=jnp.uint32)

    # A sum of the bits modulo 2^32 does not depend on the sharding.
    return {name: sum(map(bits, jax.tree.leaves(part)), jnp.uint32(0)) for name, part in tree.items()}


def _checksums(tree):
    return {name: int(value) for name, value in _sums(tree).items()}


def _compare_sums(found, expected):
    for name, value in found.items():
        if value != expected[name]:
            raise ValueError(f"{name} has the checksum {value}, {expected[name]} when it was saved")


def _check_items(folder):
    missing = [item for item in ITEMS if not (folder / item).is_dir()]
    if missing:
        raise ValueError(f"no {' and no '.join(missing)} in it: incomplete, or another version's")


def _check_shapes(folder, stored, wanted):
    for name, leaf in wanted.items():
        shape = tuple(stored[name].shape) if name in stored else None
        if shape != leaf.shape:
            found = "missing" if shape is None else f"of shape {shape}"
            raise UserError(
                f"{folder}: {name} is {found}, expected {leaf.shape}: config.model and config.data.class_names "
                "must be those of the run"
            )


def _to_tree(state):
    # Plain dicts of arrays by name, readable without this package and flax.
    return {
        "step": state.step,
        "params": named_leaves(state.params),
        "optimizer": named_leaves(state.optimizer),
        "key": jax.random.key_data(state.key),
    }


def _from_tree(tree, like):
    return like._replace(
        step=tree["step"],
        params=with_leaves(like.params, tree["params"]),
        optimizer=with_leaves(like.optimizer, tree["optimizer"]),
        key=jax.random.wrap_key_data(tree["key"]),
    )
