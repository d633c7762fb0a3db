"""Affinity labels and the random walk: by hand, and against loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from rml_jax.ops.affinity import affinity_labels, random_walk, within_radius
from tests.references import loops as references


def test_radius_by_hand():
    # Cells of a 2x3 grid: 0 1 2 / 3 4 5. At distance 1, only the outer columns do not reach each other.
    near = within_radius((2, 3), 1)
    far = {(0, 2), (0, 5), (3, 2), (3, 5)}
    for i in range(6):
        for j in range(6):
            assert near[i, j] == ((i, j) not in far and (j, i) not in far)


@pytest.mark.parametrize("radius", [0, 2, 8])
def test_radius_is_a_square_around_each_cell(radius):
    near = within_radius((4, 12), radius)
    for row in range(4):
        for column in range(12):
            expected = np.zeros((4, 12), bool)
            expected[
                max(0, row - radius) : row + radius + 1, max(0, column - radius) : column + radius + 1
            ] = True
            np.testing.assert_array_equal(near[row * 12 + column].reshape(4, 12), expected)


def test_labels_by_hand():
    labels = jnp.asarray([[[1, 1, 0], [0, 255, 1]]])
    x = 255
    expected = [
        [1, 1, x, 0, x, x],
        [1, 1, 0, 0, x, 1],
        [x, 0, 1, x, x, 0],
        [0, 0, x, 1, x, x],
        [x, x, x, x, x, x],
        [x, 1, 0, x, x, 1],
    ]
    result = affinity_labels(labels, 1)
    np.testing.assert_array_equal(result[0], expected)
    assert result.dtype == jnp.uint8


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int32])
def test_two_ignored_cells_are_no_positive_pair(dtype):
    labels = jnp.asarray([[[255, 255], [254, 0]]], dtype)
    x = 255
    expected = [[x, x, x, x], [x, x, x, x], [x, x, 1, 0], [x, x, 0, 1]]
    np.testing.assert_array_equal(affinity_labels(labels, 8)[0], expected)


def test_background_pairs_are_positive_and_images_stay_apart():
    labels = jnp.asarray([[[0, 0]], [[0, 3]]])
    np.testing.assert_array_equal(affinity_labels(labels, 8), [[[1, 1], [1, 1]], [[1, 0], [0, 1]]])


@pytest.fixture
def walk():
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, 3, 4, 2)).astype(np.float32), rng.random((2, 12, 12)).astype(np.float32)


def test_walk_equals_loops(walk):
    scores, affinity = walk
    expected = references.random_walk(scores, affinity, 2)
    np.testing.assert_allclose(
        random_walk(jnp.asarray(scores), jnp.asarray(affinity), 2), expected, atol=1e-5
    )


def test_constant_scores_stay(walk):
    scores = jnp.full((2, 3, 4, 2), 0.7)
    np.testing.assert_allclose(random_walk(scores, jnp.asarray(walk[1]), 1), scores, rtol=1e-5)


@pytest.mark.parametrize("strength", [1.0, 0.01, 0.0])
def test_cells_without_neighbours_keep_their_scores(walk, strength):
    affinity = jnp.tile(strength * jnp.eye(12), (2, 1, 1))
    result = random_walk(jnp.asarray(walk[0]), affinity, 8)
    np.testing.assert_allclose(result, walk[0], rtol=1e-5)


def test_affinity_counts_squared():
    scores = jnp.asarray([0.0, 1.0]).reshape(1, 1, 2, 1)
    affinity = jnp.asarray([[[0.9, 0.9], [0.3, 0.3]]])
    np.testing.assert_allclose(random_walk(scores, affinity, 1)[0, 0, :, 0], [0.1, 0.1], rtol=1e-5)
