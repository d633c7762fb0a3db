"""Resizing: against loops over pixels, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml_jax.ops.resize import resize_bilinear, resize_nearest
from tests.platforms import as_on
from tests.references import loops as references

SIZES = [
    ((5, 7), (5, 7)),
    ((5, 7), (11, 13)),
    ((5, 7), (3, 2)),
    ((6, 4), (3, 9)),
    ((5, 7), (1, 1)),
    ((1, 1), (4, 3)),
]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("given", "wanted"), SIZES)
def test_bilinear_equals_loops(given, wanted, align_corners):
    x = np.random.default_rng(0).normal(size=(2, *given, 3)).astype(np.float32)
    result = resize_bilinear(jnp.asarray(x), wanted, align_corners=align_corners)
    assert result.shape == (2, *wanted, 3)
    np.testing.assert_allclose(result, references.resize_bilinear(x, wanted, align_corners), atol=1e-5)


def test_bilinear_by_hand():
    x = jnp.asarray([0.0, 4.0]).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(resize_bilinear(x, (1, 4))[0, 0, :, 0], [0, 1, 3, 4])
    np.testing.assert_allclose(resize_bilinear(x, (1, 1))[0, 0, :, 0], [2])


@pytest.mark.parametrize(
    ("given", "wanted", "expected"),
    [
        ([0, 6], 4, [0, 2, 4, 6]),
        ([0, 6, 2], 5, [0, 3, 6, 4, 2]),
        ([0, 1, 2, 3, 8], 3, [0, 2, 8]),
        ([7, 9], 1, [7]),  # a single pixel is the first one, as in torch
        ([7], 3, [7, 7, 7]),
    ],
)
def test_bilinear_with_aligned_corners_by_hand(given, wanted, expected):
    x = jnp.asarray(given, jnp.float32)
    across = resize_bilinear(x.reshape(1, 1, -1, 1), (1, wanted), align_corners=True)
    np.testing.assert_allclose(across[0, 0, :, 0], expected, rtol=1e-6)
    down = resize_bilinear(x.reshape(1, -1, 1, 1), (wanted, 1), align_corners=True)
    np.testing.assert_allclose(down[0, :, 0, 0], expected, rtol=1e-6)


def test_bilinear_with_aligned_corners_keeps_the_corners_and_a_ramp():
    ramp = np.linspace(0, 1, 5)[:, None] - 3 * np.linspace(0, 1, 7)[None, :]
    result = resize_bilinear(jnp.asarray(ramp, jnp.float32)[None, :, :, None], (9, 4), align_corners=True)
    expected = np.linspace(0, 1, 9)[:, None] - 3 * np.linspace(0, 1, 4)[None, :]
    np.testing.assert_allclose(result[0, :, :, 0], expected, atol=1e-6)


def test_bilinear_to_the_same_size_changes_no_bit():
    x = np.random.default_rng(1).normal(size=(1, 5, 7, 2)).astype(np.float32)
    np.testing.assert_array_equal(resize_bilinear(jnp.asarray(x), (5, 7)), x)


@pytest.mark.parametrize("wanted", [(11, 13), (3, 2)])
def test_bilinear_preserves_constants(wanted):
    result = resize_bilinear(jnp.full((1, 5, 7, 1), 3.25), wanted)
    np.testing.assert_allclose(result, np.full((1, *wanted, 1), 3.25), rtol=1e-6)


@pytest.mark.parametrize("wanted", [(12, 20), (4, 5)])
def test_bilinear_preserves_a_ramp_in_the_interior(wanted):
    def ramp(height, width):
        y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
        return (2 * y[:, None] - 3 * x[None, :] + 1)[None, :, :, None]

    result = resize_bilinear(jnp.asarray(ramp(6, 8), jnp.float32), wanted)
    # Enlarging holds the outermost samples, so what lies beyond the first centre is no longer a ramp.
    rows, columns = wanted[0] // 6, wanted[1] // 8
    interior = (0, slice(rows, wanted[0] - rows), slice(columns, wanted[1] - columns), 0)
    np.testing.assert_allclose(result[interior], ramp(*wanted)[interior], atol=1e-5)


def test_bilinear_keeps_the_type():
    assert resize_bilinear(jnp.ones((1, 2, 2, 1), jnp.bfloat16), (3, 3)).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("given", "wanted", "chosen"),
    [
        (4, 4, [0, 1, 2, 3]),
        (2, 4, [0, 0, 1, 1]),
        (4, 2, [1, 3]),
        (3, 5, [0, 0, 1, 2, 2]),
        (5, 3, [0, 2, 4]),
        (48, 3, [8, 24, 40]),
    ],
)
def test_nearest_by_hand(given, wanted, chosen):
    line = np.arange(given, dtype=np.uint8)
    across = resize_nearest(jnp.asarray(line.reshape(1, 1, given)), (1, wanted))
    np.testing.assert_array_equal(across[0, 0], chosen)
    down = resize_nearest(jnp.asarray(line.reshape(1, given, 1)), (wanted, 1))
    np.testing.assert_array_equal(down[0, :, 0], chosen)
    assert across.dtype == jnp.uint8


def test_nearest_takes_channels_and_both_axes_at_once():
    x = np.arange(2 * 2 * 3 * 2).reshape(2, 2, 3, 2)
    result = resize_nearest(jnp.asarray(x), (4, 3))
    np.testing.assert_array_equal(result, x[:, [0, 0, 1, 1]])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_sums_of_a_gpu_equal_the_products_with_gradients(dtype):
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 5, 7, 3)), dtype)
    weights = np.random.default_rng(3).normal(size=(2, 11, 4, 3)).astype(np.float32)

    def weighted(x):
        resized = resize_bilinear(x, (11, 4))
        assert resized.dtype == dtype
        return (resized.astype(jnp.float32) * weights).sum()

    here = jax.value_and_grad(weighted)(x)
    there = as_on(("cuda",), jax.value_and_grad(weighted))(x)
    tolerance = 1e-5 if dtype == jnp.float32 else 0.05
    for ours, theirs in zip(here, there, strict=True):
        np.testing.assert_allclose(
            ours.astype(np.float32), theirs.astype(np.float32), atol=tolerance, rtol=tolerance
        )
