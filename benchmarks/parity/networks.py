"""Networks with random parameters in which mistakes show."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def random_network(make, seed=0):
    """A network with random parameters of every kind.

    Biases and norms are not left at 0 and 1, where mistakes hide. Drawn by NumPy, which takes a hundredth of flax's
    time here.

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
