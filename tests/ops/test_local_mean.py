"""Means around cells: against a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml_jax.ops.local_mean import local_mean
from tests.references import loops as references


@pytest.mark.parametrize("radius", [0, 1, 2, 9])
def test_equals_a_loop(radius):
    rng = np.random.default_rng(radius)
    x = rng.normal(size=(2, 5, 7, 3)).astype(np.float32)
    cells = rng.random((2, 5, 7)) < 0.4
    np.testing.assert_allclose(
        local_mean(x, radius, cells), references.local_mean(x, radius, cells), atol=1e-6
    )
    np.testing.assert_allclose(
        local_mean(x, radius), references.local_mean(x, radius, cells | True), atol=1e-6
    )


def test_what_takes_no_part_has_no_influence():
    x = np.random.default_rng(0).normal(size=(1, 4, 6, 2)).astype(np.float32)
    cells = np.ones((1, 4, 6), bool)
    cells[:, :, 4:] = False
    changed = x.copy()
    changed[:, :, 4:] = 1e6
    np.testing.assert_array_equal(local_mean(x, 2, cells), local_mean(changed, 2, cells))
    gradient = jax.grad(lambda x: local_mean(x, 2, cells).sum())(jnp.asarray(x))
    assert not gradient[:, :, 4:].any()
    assert gradient[:, :, :4].all()
