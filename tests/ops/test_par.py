"""PAR: against the formula of AFA written as loops over pixels and neighbours."""

import functools
import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rml_jax.ops.par import par, par_weights
from tests.platforms import as_on
from tests.references import loops as references

PUBLISHED = (1, 2, 4, 8, 12, 24)

jitted_par = jax.jit(par, static_argnames="iterations")
jitted_weights = jax.jit(par_weights)


@pytest.fixture(scope="module")
def noisy():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 7, 9, 3)).astype(np.float32)
    # Likenesses of one noisy image are all tiny but for one neighbour: smooth the second a little.
    images[1] = images[1] / 8 + 100
    images[1, :4] = images[1, :4].mean(axis=0, keepdims=True)
    return images, rng.random((2, 7, 9, 2)).astype(np.float32)


@pytest.mark.parametrize(("dilations", "iterations"), [((1, 2), 3), (PUBLISHED, 2)])
def test_equals_loops(noisy, dilations, iterations):
    images, masks = noisy
    result = par(jnp.asarray(images), jnp.asarray(masks), dilations=dilations, iterations=iterations)
    expected = [references.par(i, m, dilations, iterations) for i, m in zip(images, masks, strict=True)]
    np.testing.assert_allclose(result, expected, rtol=2e-4, atol=1e-5)
    assert result.dtype == jnp.float32


@pytest.mark.parametrize("platforms", [("tpu",), ("cpu", "cuda", "tpu")], ids="+".join)
@pytest.mark.parametrize("dilations", [(1,), (1, 2, 5)])
def test_the_form_of_accelerators_equals_loops(noisy, platforms, dilations):
    images, masks = noisy
    refine = functools.partial(par, dilations=dilations, iterations=2)
    expected = [references.par(i, m, dilations, 2) for i, m in zip(images, masks, strict=True)]
    np.testing.assert_allclose(as_on(platforms, refine)(images, masks), expected, rtol=2e-4, atol=1e-5)


def test_a_single_row_equals_loops(noisy):
    images, masks = (a[:1, :1] for a in noisy)
    expected = references.par(images[0], masks[0], PUBLISHED, 2)
    np.testing.assert_allclose(jitted_par(images, masks, iterations=2)[0], expected, rtol=2e-4, atol=1e-5)


def test_published_dilations_and_ten_iterations_are_the_defaults(noisy):
    images, masks = (jnp.asarray(a[:1]) for a in noisy)
    np.testing.assert_allclose(
        par(images, masks), par(images, masks, dilations=PUBLISHED, iterations=10), rtol=1e-5
    )


# A single row, and images smaller and greater than the greatest dilation.
SIZES = st.sampled_from([(1, 11), (7, 9), (30, 26)])


@settings(max_examples=15)
@given(SIZES, st.sampled_from([1, 8, 255]), st.integers(0, 2**32 - 1))
def test_weights_are_48_and_sum_to_1_01(size, greatest, seed):
    images = np.random.default_rng(seed).integers(0, greatest + 1, (2, *size, 3))
    weights = np.asarray(jitted_weights(images))
    assert weights.shape == (48, 2, *size)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=0), np.full((2, *size), 1.01), rtol=1e-5)


@settings(max_examples=10)
@given(SIZES, st.sampled_from([1, 8, 255]), st.floats(-1, 1, width=32), st.integers(0, 2**32 - 1))
def test_constant_mask_stays_constant_and_grows_by_1_01_each_time(size, greatest, value, seed):
    images = np.random.default_rng(seed).integers(0, greatest + 1, (2, *size, 3))
    result = jitted_par(images, jnp.full((2, *size, 1), value))
    np.testing.assert_allclose(result, np.full((2, *size, 1), value * 1.01**10), rtol=1e-5, atol=1e-30)


def test_in_an_image_of_one_colour_only_the_distance_tells_neighbours_apart():
    weights = np.asarray(par_weights(jnp.full((1, 5, 5, 3), 100.3)))
    distances = [d * math.hypot(*step) for d in PUBLISHED for step in references.DIRECTIONS]
    spread = statistics.stdev(distances)
    nearness = np.exp([-((d / spread / 0.3) ** 2) for d in distances])
    expected = 1 / 48 + 0.01 * nearness / nearness.sum()
    assert expected.max() > 1.03 * expected.min()
    for row in range(5):
        np.testing.assert_allclose(weights[:, 0, row, 2], expected, atol=1e-7)


def test_mask_follows_a_colour_edge():
    rng = np.random.default_rng(1)
    truth = np.zeros((12, 16), bool)
    truth[:, 9:] = True
    colours = np.where(truth[..., None], [200.0, 60, 30], [20.0, 90, 160]).astype(np.float32)
    mask = np.clip(truth + rng.normal(0, 0.35, truth.shape), 0, 1).astype(np.float32)
    mask[:, 8] = 0.9  # one column beyond the edge of the object
    refined = par(jnp.asarray(colours)[None], jnp.asarray(mask)[None, :, :, None])[0, :, :, 0] / 1.01**10
    assert np.abs(refined - truth).mean() < np.abs(mask - truth).mean()
    np.testing.assert_array_equal(refined > 0.5, truth)
    assert ((mask > 0.5) != truth).sum() > 20
