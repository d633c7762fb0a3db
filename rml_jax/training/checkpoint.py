"""Checkpoints of a run, by orbax: `DIR/checkpoints/STEP`, where STEP is the number of updates made."""

import jax
import orbax.checkpoint as ocp

from rml_jax.errors import UserError
from rml_jax.training.step import TrainState
from rml_jax.trees import named_leaves, with_leaves


class Checkpoints:
    """The checkpoints of one work directory.

    Each holds the train state and the state of the data iterator, so that a resumed run sees the batches that
    come next. Saving runs in the background; `close` waits for it.

    Args:
      workdir: pathlib.Path of the run.
      keep: number of newest checkpoints to keep; None to only read, which leaves the folder as it is.
    """

    def __init__(self, workdir, keep=None):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=keep is not None)
        self._directory = (workdir / "checkpoints").absolute()
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def save(self, state, iterator_state):
        """Saves a train state under its own step, unless that is already saved.

        Args:
          state: TrainState.
          iterator_state: JSON-like state of the data iterator.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_to_tree(state)), data=ocp.args.JsonSave(iterator_state)
        )
        self._manager.save(step, args=items)

    def restore(self, state):
        """The newest checkpoint.

        Args:
          state: TrainState with the shapes, types and shardings wanted, arrays or jax.ShapeDtypeStruct.

        Returns:
          TrainState and the data iterator's state, or None where there is no checkpoint.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, _to_tree(state))
        items = ocp.args.Composite(state=ocp.args.StandardRestore(wanted), data=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        return _from_tree(restored.state, state), restored.data

    def restore_params(self, params):
        """The newest checkpoint's parameters alone.

        Args:
          params: nnx.State with the shapes and types wanted.

        Returns:
          step (int) and the parameters.

        Raises:
          UserError: if there is no checkpoint, or it holds another network's parameters.
        """
        step = self._manager.latest_step()
        if step is None:
            raise UserError(f"{self._directory}: no checkpoint, expected at least one from train.py")
        folder = self._directory / str(step) / "state"
        handler = ocp.PyTreeCheckpointHandler()
        wanted = {"params": jax.tree.map(ocp.utils.to_shape_dtype_struct, named_leaves(params))}
        # orbax itself would hand out whatever shapes it finds.
        _check_shapes(folder, handler.metadata(folder).tree["params"], wanted["params"])
        restored = ocp.Checkpointer(handler).restore(
            folder,
            args=ocp.args.PyTreeRestore(
                wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
            ),
        )
        return step, with_leaves(params, restored["params"])

    def close(self):
        """Waits until everything is saved."""
        self._manager.wait_until_finished()
        self._manager.close()


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
    # Plain dicts of arrays by name, readable without this code and its libraries.
    return {
        "step": state.step,
        "params": named_leaves(state.params),
        "optimizer": named_leaves(state.optimizer),
        "key": jax.random.key_data(state.key),
    }


def _from_tree(tree, like):
    return TrainState(
        step=tree["step"],
        params=with_leaves(like.params, tree["params"]),
        optimizer=with_leaves(like.optimizer, tree["optimizer"]),
        key=jax.random.wrap_key_data(tree["key"]),
    )
