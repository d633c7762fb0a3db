"""Matrix products in bfloat16 against NumPy with operands rounded beforehand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml_jax.ops.product import bfloat16_matmul


@pytest.fixture(scope="module")
def operands():
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in ((2, 40, 24), (24, 16), (2, 40, 16))]


def rounded(array):
    return array.astype(jnp.bfloat16).astype(np.float64)


def test_operands_are_rounded_and_sums_are_not(operands):
    rows, kernel, _ = operands
    product = jax.jit(bfloat16_matmul)(rows[0], kernel)
    assert product.dtype == jnp.float32
    np.testing.assert_allclose(product, rounded(rows[0]) @ rounded(kernel), rtol=1e-5, atol=1e-5)
    assert np.abs(product - rows[0].astype(np.float64) @ kernel).max() > 1e-3


def test_gradients_are_products_of_rounded_operands(operands):
    rows, kernel, cotangent = operands
    _, pull_back = jax.vjp(bfloat16_matmul, rows[0], kernel)
    of_rows, of_kernel = jax.jit(pull_back)(cotangent[0])
    np.testing.assert_allclose(of_rows, rounded(cotangent[0]) @ rounded(kernel).T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_kernel, rounded(rows[0]).T @ rounded(cotangent[0]), rtol=1e-5, atol=1e-5)


def test_vmap_is_a_product_for_each(operands):
    rows, kernel, cotangent = operands
    product, pull_back = jax.vjp(jax.vmap(bfloat16_matmul, in_axes=(0, None)), rows, kernel)
    _, of_kernel = jax.jit(pull_back)(cotangent)
    np.testing.assert_allclose(product, rounded(rows) @ rounded(kernel), rtol=1e-5, atol=1e-5)
    expected = np.einsum("bnk,bnm->km", rounded(rows), rounded(cotangent))
    np.testing.assert_allclose(of_kernel, expected, rtol=1e-5, atol=1e-4)
