"""Data parallelism: batches are sharded along one mesh axis, `data`; parameters are replicated.

The optimizer's state is replicated as well, or sharded along the same axis (ZeRO-1: Rajbhandari et al., "ZeRO: Memory
Optimizations Toward Training Trillion Parameter Models", 2020, stage 1). Only the state's shardings differ; the
compiler adds the communication.
"""

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rml_jax.training.step import TrainState
from rml_jax.utils.errors import UserError


def make_mesh(batch_size, grad_accum_steps=1, devices=None):
    """Creates the mesh of all devices.

    Args:
      batch_size: images in a batch, over all devices.
      grad_accum_steps: number of parts that each device's shard of the batch is split into.
      devices: sequence of devices; None for all of this run.

    Returns:
      jax.sharding.Mesh with the axis `data`.

    Raises:
      UserError: if the batch, or a part of it, does not divide evenly among the devices.
    """
    count = jax.device_count() if devices is None else len(devices)
    if batch_size % (count * grad_accum_steps):
        parts = f" times config.train.grad_accum_steps = {grad_accum_steps}" if grad_accum_steps > 1 else ""
        raise UserError(
            f"config.train.batch_size is {batch_size}: expected a multiple of the {count} devices{parts}"
        )
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def shard(batch, mesh):
    """Puts a batch on the devices, sharded over the images.

    Args:
      batch: dict of arrays [B / processes, ...], this process's part of the batch.
      mesh: of `make_mesh`.

    Returns:
      Dict of jax.Array [B, ...].
    """
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def replicate(tree, mesh):
    """Puts arrays on every device.

    Args:
      tree: pytree of arrays. Arrays that are already replicated are returned without waiting for them.
      mesh: of `make_mesh`.

    Returns:
      Pytree of jax.Array.
    """
    sharding = _replicated(mesh)

    def put(leaf):
        if leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
            return leaf
        # Weights from a file are arrays of this process; they reach other processes' devices only through the host.
        return jax.device_put(np.asarray(leaf), sharding)

    return jax.tree.map(put, tree)


def init_model(make_model, mesh):
    """Draws the initial parameters of a network, replicated over all devices.

    Args:
      make_model: function without arguments that returns an nnx.Module whose only state is its parameters.
      mesh: of `make_mesh`.

    Returns:
      graphdef and the parameters, as `nnx.split` returns them.
    """
    # It runs once, and compiling hundreds of random draws with optimisation takes longer than it saves (4.4 against
    # 1.5 s in all on a CPU).
    draw = jax.jit(
        lambda: nnx.split(make_model()),
        out_shardings=_replicated(mesh),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    return draw()


def initial_state(params, optimizer, seed, mesh, shard_optimizer=False):
    """Creates the state before the first update.

    Args:
      params: nnx.State, on any devices.
      optimizer: optax.GradientTransformation over them.
      seed: of the random key of the run.
      mesh: of `make_mesh`.
      shard_optimizer: whether the optimizer's state is sharded rather than replicated.

    Returns:
      TrainState, replicated except for a sharded optimizer state.
    """
    params = replicate(params, mesh)
    everywhere = _replicated(mesh)
    step, key = jax.jit(lambda: (jax.numpy.int32(0), jax.random.key(seed)), out_shardings=everywhere)()
    shardings = _optimizer_shardings(jax.eval_shape(optimizer.init, params), mesh, shard_optimizer)
    return TrainState(step, params, jax.jit(optimizer.init, out_shardings=shardings)(params), key)


def abstract_state(params, optimizer, mesh, shard_optimizer=False):
    """Describes `initial_state`, without arrays, for programs that are only compiled.

    Args:
      params: nnx.State of jax.ShapeDtypeStruct.
      optimizer, mesh, shard_optimizer: see `initial_state`.

    Returns:
      TrainState of jax.ShapeDtypeStruct with shardings.
    """
    shapes = jax.eval_shape(optimizer.init, params)
    step, key = jax.eval_shape(lambda: (jax.numpy.int32(0), jax.random.key(0)))
    replicated = jax.tree.map(lambda _: _replicated(mesh), (step, params, key))
    shardings = TrainState(
        replicated[0], replicated[1], _optimizer_shardings(shapes, mesh, shard_optimizer), replicated[2]
    )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        TrainState(step, params, shapes, key),
        shardings,
    )


def _optimizer_shardings(shapes, mesh, shard_optimizer):
    return jax.tree.map(
        lambda leaf: _longest_axis_sharded(leaf, mesh) if shard_optimizer else _replicated(mesh), shapes
    )


def _replicated(mesh):
    return NamedSharding(mesh, PartitionSpec())


def _longest_axis_sharded(leaf, mesh):
    """Returns a sharding of the longest axis that divides evenly among the devices, or a replicated one."""
    axes = [axis for axis, size in enumerate(leaf.shape) if size % mesh.size == 0]
    if not axes:
        return _replicated(mesh)
    longest = max(axes, key=lambda axis: leaf.shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * longest, "data"))


def jit_train_step(train_step, state=None):
    """Jits a train step, which then donates its state.

    Args:
      train_step: of `rml_jax.training.step.make_train_step`.
      state: TrainState whose shardings the result gets; if None, the compiler chooses.

    Returns:
      The jitted function (TrainState, batch, mutual) -> (TrainState, metrics).
    """
    shardings = None if state is None else (jax.tree.map(lambda leaf: leaf.sharding, state), None)
    return jax.jit(train_step, static_argnames="mutual", donate_argnames="state", out_shardings=shardings)
