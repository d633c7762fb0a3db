"""Small networks with random parameters of every kind, for tests."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rml_jax.models import MiTConfig

SMALL_BACKBONE = MiTConfig(
    embed_dims=(4, 4, 8, 8),
    depths=(1, 1, 1, 2),
    num_heads=(1, 1, 2, 2),
    sr_ratios=(2, 2, 1, 1),
    strides=(2, 2, 1, 1),
    mlp_ratio=2,
)
"""A backbone of a few thousand parameters, with all kinds of layers of a large one."""


def random_network(make, seed=0):
    """Builds a network with random parameters of every kind.

    Biases and norms are not 0 and 1, which would hide errors. NumPy draws the parameters, in a hundredth of flax's
    time.

    Args:
      make: function that builds the nnx.Module; it is only traced.
      seed: of the parameters.

    Returns:
      The nnx.Module.
    """
    graph, state = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        values = rng.normal(size=leaf.shape)
        if leaf.ndim == 1:
            values = 0.2 * values + ("scale" in jax.tree_util.keystr(path))
        else:
            values /= np.sqrt(np.prod(leaf.shape[:-1]))
        return jnp.asarray(values, leaf.dtype)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, state))
