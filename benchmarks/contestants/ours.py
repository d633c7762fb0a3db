"""Our network, training step and its parts, for timing."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks import measure
from benchmarks.contestants import settings
from rml_jax.models.build import build_network
from rml_jax.ops import multi_scale_cam, normalize, sample_affine, warp
from rml_jax.training.optimizer import make_optimizer
from rml_jax.training.step import TrainState, make_pseudo_labels, make_train_step, pair_losses


def build(variant, dtype):
    """Returns the nnx.GraphDef and the parameters of a network of a precision in `rml_jax.models.build.DTYPES`."""
    config = settings.network_config(variant)
    make = lambda: nnx.split(build_network(config, dtype, seed=0))  # noqa: E731
    # Compiling the random draws with optimisation takes longer than it saves.
    return jax.jit(make, compiler_options={"xla_backend_optimization_level": 0})()


class Contestant:
    """One network, batch and optimizer. All methods return when the device has finished.

    Args:
      variant: of the backbone.
      batch_size, crop: B and S.
      dtype: see `build`.
    """

    def __init__(self, variant, batch_size, crop, dtype):
        self._config = settings.step_config()
        self._graph, params = build(variant, dtype)
        self._optimizer = make_optimizer(settings.optimizer_config(), params)
        self._batch = jax.device_put(settings.make_batch(batch_size, crop))
        state = TrainState(jnp.int32(0), params, jax.jit(self._optimizer.init)(params), jax.random.key(0))
        self._state = state
        self._train_step = jax.jit(
            make_train_step(self._graph, self._optimizer, self._config),
            static_argnames="mutual",
            donate_argnames="state",
        )

    def step(self):
        """Makes one update with all losses."""
        self._state, metrics = self._train_step(self._state, self._batch, mutual=True)
        jax.block_until_ready((self._state.params, metrics))

    def program(self):
        """Returns the text of the compiled step."""
        return self._train_step.lower(self._state, self._batch, mutual=True).compile().as_text()

    def parts(self):
        """Returns a dict from the names of the step's parts to functions, each compiled alone."""
        graph, config, params, batch = self._graph, self._config, self._state.params, self._batch
        theta = sample_affine(jax.random.key(1), len(batch["tags"]), config.affine)
        keys = jax.random.split(jax.random.key(2), len(batch["tags"]))
        images = normalize(batch["image"], batch["box"])
        pairs = jnp.stack([images, warp(images, theta)], axis=1)

        # All arrays are arguments, since XLA would fold constants at compile time.
        def forward(params, pairs):
            return jax.vmap(nnx.merge(graph, params), out_axes=1)(pairs, keys)

        def both_ways(params, pairs):
            result, pull_back = jax.vjp(lambda params: forward(params, pairs), params)
            return pull_back(jax.tree.map(jnp.ones_like, result))

        def labels(params, images, batch):
            return make_pseudo_labels(graph, params, images, batch, config)

        def losses(outputs, labels, batch, theta):
            return pair_losses(outputs, labels, batch, theta, config)

        def cams(params, images):
            classify = nnx.merge(graph, params).classify
            return multi_scale_cam(
                classify, images, scales=config.cam_scales, flip=config.cam_flip, stride=config.stride
            )

        def update(gradients, state, params):
            updates, state = self._optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        outputs, found = jax.jit(forward)(params, pairs), jax.jit(labels)(params, images, batch)
        return {
            "network forward": _timed(forward, params, pairs),
            "network forward and backward": _timed(both_ways, params, pairs),
            "multi-scale CAM": _timed(cams, params, images),
            "multi-scale CAM and pseudo labels": _timed(labels, params, images, batch),
            "losses": _timed(jax.value_and_grad(losses, has_aux=True), outputs, found, batch, theta),
            "optimizer": _timed(update, params, self._state.optimizer, params),
        }

    def peak_memory(self):
        """Returns the device's peak memory in bytes if it is known, else the process's peak resident size."""
        statistics = jax.devices()[0].memory_stats() or {}
        return statistics.get("peak_bytes_in_use") or measure.peak_resident_bytes()


def _timed(function, *arguments):
    compiled = jax.jit(function)
    return lambda: jax.block_until_ready(compiled(*arguments))
