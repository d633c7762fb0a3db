"""Networks for the tests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx


@pytest.fixture(scope="session")
def build():
    """Function (make, seed=0) -> the network of `make()` with random parameters of every kind.

    Drawn by NumPy, which takes a hundredth of flax's time here; biases and norms are not left at 0 and 1, where
    mistakes hide.
    """

    def build(make, seed=0):
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

    return build
