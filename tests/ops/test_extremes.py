"""Extremes of maps against NumPy, and their gradients where XLA rounds a value in two ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml_jax.ops.extremes import spatial_max, spatial_min


@pytest.fixture
def maps():
    return np.random.default_rng(0).standard_normal((3, 4, 5, 2)).astype(np.float32)


@pytest.mark.parametrize(("ours", "reference"), [(spatial_max, np.max), (spatial_min, np.min)])
def test_values_and_gradients(maps, ours, reference):
    weights = np.arange(1, 7, dtype=np.float32).reshape(3, 2)
    np.testing.assert_array_equal(jax.jit(ours)(maps), reference(maps, axis=(1, 2)))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(weights * ours(x))))(maps)
    extreme = maps == reference(maps, axis=(1, 2), keepdims=True)
    np.testing.assert_array_equal(gradient, extreme * weights[:, None, None])


def test_vmap_is_one_after_the_other(maps):
    views = np.stack([maps, -maps])
    loss = lambda x: jnp.sum(jax.vmap(spatial_max)(x) ** 2)  # noqa: E731
    by_one = [jax.grad(lambda x: jnp.sum(spatial_max(x) ** 2))(view) for view in views]
    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(views), np.stack(by_one))


def test_among_equals_the_first_gets_the_gradient():
    gradient = jax.grad(lambda x: spatial_max(x).sum())(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[1, 0], [0, 0]])


def test_no_maximum_behind_a_norm_loses_its_gradient():
    """A bias added before the maximum gets all of its gradient; with `jnp.max`, some features get none."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 4, 4, 8)).astype(np.float32)
    kernel = rng.normal(size=(8, 8)).astype(np.float32)
    weights = rng.normal(size=(16, 8)).astype(np.float32)

    def loss(bias, x, kernel, weights, key):
        keep = jax.random.bernoulli(key, 0.9, (16, 1, 1, 1))
        branch = jnp.where(keep, x @ kernel / 0.9, 0.0)
        mean = branch.mean(axis=-1, keepdims=True)
        variance = jnp.square(branch - mean).mean(axis=-1, keepdims=True)
        return jnp.sum(weights * spatial_max((branch - mean) * jax.lax.rsqrt(variance + 1e-6) + bias))

    # As users compile; with less optimisation (tests/conftest.py), `jnp.max` would lose nothing.
    jitted = jax.jit(jax.grad(loss), compiler_options={"xla_backend_optimization_level": 3})
    gradient = jitted(np.zeros(8, np.float32), x, kernel, weights, jax.random.key(0))
    np.testing.assert_allclose(gradient, weights.sum(axis=0), atol=1e-4)
