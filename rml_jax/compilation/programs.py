"""The programs of training and evaluation, with the shapes of their arguments on described devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rml_jax.models import build
from rml_jax.stages.runner import StageRunner
from rml_jax.training.optimizer import make_optimizer, optimizer_config
from rml_jax.training.sharding import abstract_state, jit_train_step, make_mesh
from rml_jax.training.step import make_train_step, step_config

_SLOTS = 4  # classes that evaluation refines at once, as in most batches


def train_program(config, devices, mutual=True):
    """Builds the train step.

    Args:
      config: ConfigDict of a run, with its class names.
      devices: of a Topology.
      mutual: whether it is the step with all losses or the one with the classification loss alone.

    Returns:
      The jitted function's `trace`, and a tuple of its arguments as jax.ShapeDtypeStruct with shardings.

    Raises:
      UserError: if the batch does not divide evenly among the devices.
    """
    mesh = make_mesh(config.train.batch_size, config.train.grad_accum_steps, devices)
    config = _with_own_precision(config)
    graphdef, params = build.build_graph(config)
    optimizer = make_optimizer(optimizer_config(config), params)
    state = abstract_state(params, optimizer, mesh, config.train.shard_optimizer)
    count, side, classes = config.train.batch_size, config.train.crop_size, len(config.data.class_names)
    batch = {
        "image": jax.ShapeDtypeStruct((count, side, side, 3), jnp.uint8),
        "box": jax.ShapeDtypeStruct((count, 4), jnp.int32),
        "tags": jax.ShapeDtypeStruct((count, classes), jnp.float32),
    }
    step = jit_train_step(make_train_step(graphdef, optimizer, step_config(config)), state)
    return functools.partial(step.trace, mutual=mutual), (state, _placed(batch, mesh, "data"))


def _with_own_precision(config):
    # "auto" looks at the CPU of this machine, where nothing will run.
    config = config.copy_and_resolve_references()
    if config.cam.dtype == "auto":
        config.cam.dtype = "model"
    return config


def _evaluation(config, devices):
    """Returns the runner, and the arguments of its programs as shapes: a full batch on the first canvas."""
    config = _with_own_precision(config)
    graphdef, params = build.build_graph(config)
    runner = StageRunner(config, graphdef, devices=devices)
    mesh = Mesh(np.array(devices), ("data",))
    count, classes = config.eval.batch_size * len(devices), len(config.data.class_names)
    height, width = runner.canvases[0]
    slots = min(_SLOTS, classes)
    batch = {
        "images": jax.ShapeDtypeStruct((count, height, width, 3), jnp.uint8),
        "sizes": jax.ShapeDtypeStruct((count, 2), jnp.int32),
        "classes": jax.ShapeDtypeStruct((count, slots), jnp.int32),
        "used": jax.ShapeDtypeStruct((count, slots), jnp.bool_),
        "probabilities": jax.ShapeDtypeStruct((count, height, width, 1 + slots), jnp.float32),
    }
    return runner, _placed(params, mesh), _placed(batch, mesh, "data"), mesh


def _network(config, devices):
    runner, params, batch, _ = _evaluation(config, devices)
    return runner.network.trace, (params, batch["images"], batch["sizes"])


def _refine(config, devices):
    runner, params, batch, mesh = _evaluation(config, devices)
    maps = jax.eval_shape(runner.network, params, batch["images"], batch["sizes"])
    maps = _placed({name: maps[name] for name in ("cams", "affinity")}, mesh, "data")
    scores = {
        name: jax.ShapeDtypeStruct(batch["sizes"].shape[:1], jnp.float32) for name in runner.stages.bases
    }
    images = [batch[name] for name in ("images", "sizes", "classes", "used")]
    return runner.refine.trace, (maps, *images, _placed(scores, mesh, "data"))


def _crf(config, devices):
    config = config.copy_and_resolve_references()
    config.eval.stages = ("crf",)
    runner, _, batch, _ = _evaluation(config, devices)
    inputs = {name: batch[name] for name in ("images", "sizes")}
    return runner.links["crf"].trace, (inputs, batch["classes"], batch["probabilities"])


def _placed(tree, mesh, axis=None):
    """Adds shardings to shapes: replicated, or sharded along the first axis."""
    sharding = NamedSharding(mesh, PartitionSpec(axis) if axis else PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


PROGRAMS = {
    "train": train_program,
    "classification": functools.partial(train_program, mutual=False),
    "eval": _network,
    "refine": _refine,
    "crf": _crf,
}
"""Name -> function (config, devices) -> (a jitted function's `trace`, tuple of its arguments' shapes).

`train` is the step with all losses, `classification` that of the first steps. `eval` is the network with its
multi-scale CAMs, `refine` the chains' bases, such as PAR, and `crf` the dense CRF, all for a batch of
`config.eval.batch_size` images per device on the first canvas, the latter two with four classes.
"""
