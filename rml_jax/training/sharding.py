"""How training is spread over devices: batches are split along one mesh axis, `data`, everything else is copied."""

import jax
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rml_jax.errors import UserError
from rml_jax.training.step import TrainState


def make_mesh(batch_size):
    """The mesh of all devices.

    Args:
      batch_size: pictures in a batch, over all devices.

    Returns:
      jax.sharding.Mesh with the axis `data`.

    Raises:
      UserError: if the devices can't share the batch evenly.
    """
    devices = jax.device_count()
    if batch_size % devices:
        raise UserError(
            f"config.train.batch_size is {batch_size}: expected a multiple of the {devices} devices"
        )
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh):
    """The sharding of what every device of the mesh holds in full."""
    return NamedSharding(mesh, PartitionSpec())


def shard_batch(batch, mesh):
    """Puts a batch on the devices, each of which gets its share of the pictures.

    Args:
      batch: dict of arrays [B / processes, ...], this process's part of the batch.
      mesh: of `make_mesh`.

    Returns:
      Dict of jax.Array [B, ...].
    """
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def init_model(make_model, mesh):
    """A network with fresh parameters, the same on all devices.

    Args:
      make_model: function without arguments that gives an nnx.Module of parameters alone.
      mesh: of `make_mesh`.

    Returns:
      graphdef and the parameters, as `nnx.split` gives them.
    """
    # Run once: optimising hundreds of random draws takes longer than drawing them (4.4 against 1.5 s on a CPU).
    draw = jax.jit(
        lambda: nnx.split(make_model()),
        out_shardings=replicated(mesh),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    return draw()


def initial_state(params, optimizer, seed, mesh):
    """The state before the first update.

    Args:
      params: nnx.State, on the mesh's devices or not.
      optimizer: optax.GradientTransformation over them.
      seed: of the key that all of training's randomness comes from.
      mesh: of `make_mesh`.

    Returns:
      TrainState, a copy on every device.
    """
    params = jax.device_put(params, replicated(mesh))
    rest = (jax.numpy.int32(0), jax.jit(optimizer.init)(params), jax.random.key(seed))
    step, optimizer_state, key = jax.device_put(rest, replicated(mesh))
    return TrainState(step, params, optimizer_state, key)


def jit_train_step(train_step):
    """Compiles a step for the shardings of its arguments; the state given to it is used up.

    Args:
      train_step: of `rml_jax.training.step.make_train_step`.

    Returns:
      The jitted function (TrainState, batch, mutual) -> (TrainState, metrics).
    """
    return jax.jit(train_step, static_argnames="mutual", donate_argnames="state")
