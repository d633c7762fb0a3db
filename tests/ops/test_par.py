"""PAR: against the formula of METHOD.md section 4 written as loops over pixels and neighbours."""

import math
import statistics

import jax.numpy as jnp
import numpy as np
import pytest

from rml_jax.ops.par import par, par_weights

PUBLISHED = (1, 2, 4, 8, 12, 24)
DIRECTIONS = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]


def reference(image, mask, dilations, iterations):
    """One image [H, W, 3] and mask [H, W, K]."""
    height, width, _ = image.shape
    steps = [(d * i, d * j) for d in dilations for i, j in DIRECTIONS]

    def held(row, column):
        return min(max(row, 0), height - 1), min(max(column, 0), width - 1)

    def softmax(values):
        powers = [math.exp(v - max(values)) for v in values]
        return [power / sum(powers) for power in powers]

    distances = [math.hypot(*step) for step in steps]
    spread = statistics.stdev(distances)
    position = softmax([-((d / (spread + 1e-8) / 0.3) ** 2) for d in distances])

    weights = {}
    for row in range(height):
        for column in range(width):
            places = [held(row + i, column + j) for i, j in steps]
            likeness = [0.0] * len(steps)
            for channel in range(3):
                near = [float(image[(*place, channel)]) for place in places]
                sigma = statistics.stdev(near)
                for n, value in enumerate(near):
                    difference = value - float(image[row, column, channel])
                    likeness[n] -= (difference / (sigma + 1e-8) / 0.3) ** 2 / 3
            colour = softmax(likeness)
            total = [c + 0.01 * p for c, p in zip(colour, position, strict=True)]
            weights[row, column] = list(zip(places, total, strict=True))

    for _ in range(iterations):
        refined = np.zeros(mask.shape)
        for place, terms in weights.items():
            for neighbour, weight in terms:
                refined[place] += weight * mask[neighbour]
        mask = refined
    return mask


@pytest.fixture(scope="module")
def noisy():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 7, 9, 3)).astype(np.float32)
    # Likenesses of one noisy picture are all tiny but for one neighbour: smooth the second a little.
    images[1] = images[1] / 8 + 100
    images[1, :4] = images[1, :4].mean(axis=0, keepdims=True)
    return images, rng.random((2, 7, 9, 2)).astype(np.float32)


@pytest.mark.parametrize(("dilations", "iterations"), [((1, 2), 3), (PUBLISHED, 2)])
def test_equals_loops(noisy, dilations, iterations):
    images, masks = noisy
    result = par(jnp.asarray(images), jnp.asarray(masks), dilations=dilations, iterations=iterations)
    expected = [reference(i, m, dilations, iterations) for i, m in zip(images, masks, strict=True)]
    np.testing.assert_allclose(result, expected, rtol=2e-4, atol=1e-5)
    assert result.dtype == jnp.float32


def test_published_dilations_and_ten_iterations_are_the_defaults(noisy):
    images, masks = (jnp.asarray(a[:1]) for a in noisy)
    np.testing.assert_allclose(
        par(images, masks), par(images, masks, dilations=PUBLISHED, iterations=10), rtol=1e-5
    )


def test_weights_are_48_and_sum_to_1_01(noisy):
    weights = par_weights(jnp.asarray(noisy[0]))
    assert weights.shape == (48, 2, 7, 9)
    np.testing.assert_allclose(weights.sum(axis=0), np.full((2, 7, 9), 1.01), rtol=1e-5)


def test_in_an_image_of_one_colour_only_the_distance_tells_neighbours_apart():
    weights = np.asarray(par_weights(jnp.full((1, 5, 5, 3), 100.3)))
    distances = [d * math.hypot(*step) for d in PUBLISHED for step in DIRECTIONS]
    spread = statistics.stdev(distances)
    nearness = np.exp([-((d / spread / 0.3) ** 2) for d in distances])
    expected = 1 / 48 + 0.01 * nearness / nearness.sum()
    assert expected.max() > 1.03 * expected.min()
    for row in range(5):
        np.testing.assert_allclose(weights[:, 0, row, 2], expected, atol=1e-7)


def test_constant_mask_grows_by_1_01_each_time(noisy):
    images, _ = noisy
    result = par(jnp.asarray(images), jnp.full((2, 7, 9, 1), 0.5), dilations=(1, 2), iterations=4)
    np.testing.assert_allclose(result, np.full((2, 7, 9, 1), 0.5 * 1.01**4), rtol=1e-5)


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
