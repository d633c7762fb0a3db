"""The transform A: by hand, against a grid sample written as loops, and its invariants."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rml_jax.labels import IGNORE
from rml_jax.ops.affine import AffineRange, sample_affine, validity, warp, warp_labels, warp_matrix
from rml_jax.ops.region import box_mask
from tests.references import loops as references

IDENTITY = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
FLIP = [[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
SIZE = (5, 7)
CELLS = SIZE[0] * SIZE[1]

jitted_warp = jax.jit(warp)


def theta_of(matrix):
    return jnp.asarray([matrix], jnp.float32)


def content_moved(right, down, size):
    """The transform that moves an image's content by whole pixels."""
    return [[1.0, 0.0, -2 * right / size[1]], [0.0, 1.0, -2 * down / size[0]]]


def random_thetas(count=3, seed=0):
    rng = np.random.default_rng(seed)
    return (np.eye(2, 3) + rng.normal(0, 0.35, (count, 2, 3))).astype(np.float32)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(1).normal(size=(3, *SIZE, 2)).astype(np.float32)


def test_identity_changes_nothing(image):
    theta = theta_of(IDENTITY)
    labels = np.arange(CELLS).reshape(1, *SIZE)
    np.testing.assert_allclose(warp(jnp.asarray(image[:1]), theta), image[:1], atol=1e-5)
    np.testing.assert_array_equal(warp_labels(jnp.asarray(labels), theta), labels)
    np.testing.assert_allclose(warp_matrix(theta, SIZE)[0], np.eye(CELLS), atol=1e-5)
    assert validity(theta, jnp.ones((1, *SIZE), bool)).all()


def test_flip_reverses_the_columns(image):
    theta = theta_of(FLIP)
    labels = np.arange(CELLS).reshape(1, *SIZE)
    np.testing.assert_allclose(warp(jnp.asarray(image[:1]), theta), image[:1, :, ::-1], atol=1e-5)
    np.testing.assert_array_equal(warp_labels(jnp.asarray(labels), theta), labels[:, :, ::-1])
    moved = warp_matrix(theta, SIZE)[0] @ np.arange(CELLS)
    np.testing.assert_allclose(moved, labels[0, :, ::-1].ravel(), atol=1e-4)
    assert validity(theta, jnp.ones((1, *SIZE), bool)).all()


def test_translation_by_whole_pixels(image):
    theta = theta_of(content_moved(right=2, down=-1, size=SIZE))
    expected = np.zeros_like(image[:1])
    expected[:, :-1, 2:] = image[:1, 1:, :-2]
    np.testing.assert_allclose(warp(jnp.asarray(image[:1]), theta), expected, atol=1e-5)

    labels = np.arange(CELLS, dtype=np.uint8).reshape(1, *SIZE)
    moved = np.full_like(labels, IGNORE)
    moved[:, :-1, 2:] = labels[:, 1:, :-2]
    result = warp_labels(jnp.asarray(labels), theta)
    np.testing.assert_array_equal(result, moved)
    assert result.dtype == jnp.uint8

    np.testing.assert_array_equal(validity(theta, jnp.ones((1, *SIZE), bool)), moved != IGNORE)


def test_shrinking_to_half_puts_means_of_2x2_blocks_in_the_middle():
    x = np.random.default_rng(2).normal(size=(1, 8, 8, 1)).astype(np.float32)
    theta = theta_of([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    expected = np.zeros_like(x)
    expected[:, 2:6, 2:6] = x.reshape(1, 4, 2, 4, 2, 1).mean(axis=(2, 4))
    np.testing.assert_allclose(warp(jnp.asarray(x), theta), expected, atol=1e-5)
    np.testing.assert_array_equal(
        validity(theta, jnp.ones((1, 8, 8), bool))[0], np.pad(np.ones((4, 4), bool), 2)
    )


def test_warp_equals_loops(image):
    thetas = random_thetas()
    result = warp(jnp.asarray(image), jnp.asarray(thetas))
    np.testing.assert_allclose(result, references.warp(image, thetas), atol=1e-4)
    assert (np.asarray(result) == 0).any(), "the case must look outside"


def test_matrix_times_map_equals_warp_and_its_transpose_is_the_gradient(image):
    thetas = jnp.asarray(random_thetas(seed=5))
    matrix = np.asarray(warp_matrix(thetas, SIZE))
    assert matrix.shape == (3, CELLS, CELLS)
    warped, pull_back = jax.vjp(lambda x: warp(x, thetas), jnp.asarray(image))
    np.testing.assert_allclose(
        matrix @ image.reshape(3, CELLS, 2), np.asarray(warped).reshape(3, CELLS, 2), atol=1e-4
    )
    cotangent = np.random.default_rng(3).normal(size=image.shape).astype(np.float32)
    (gradient,) = pull_back(jnp.asarray(cotangent))
    np.testing.assert_allclose(
        np.asarray(gradient).reshape(3, CELLS, 2),
        matrix.swapaxes(1, 2) @ cotangent.reshape(3, CELLS, 2),
        atol=1e-4,
    )


def test_pairs_move_on_both_axes(image):
    thetas = jnp.asarray(random_thetas(seed=6))
    x = image[..., :1].reshape(3, CELLS, 1)
    matrix = np.asarray(warp_matrix(thetas, SIZE))
    moved = np.asarray(warp(jnp.asarray(image[..., :1]), thetas)).reshape(3, CELLS, 1)
    pairs = matrix @ (x @ x.swapaxes(1, 2)) @ matrix.swapaxes(1, 2)
    np.testing.assert_allclose(pairs, moved @ moved.swapaxes(1, 2), atol=1e-4)


def test_labels_equal_nearest_by_loops():
    thetas = random_thetas(seed=7)
    labels = np.random.default_rng(4).integers(0, 20, (3, *SIZE))
    expected = np.full_like(labels, IGNORE)
    for b, theta in enumerate(thetas.astype(np.float64)):
        for i in range(SIZE[0]):
            for j in range(SIZE[1]):
                row, column = (
                    math.floor(position + 0.5) for position in references.source_position(theta, i, j, SIZE)
                )
                if 0 <= row < SIZE[0] and 0 <= column < SIZE[1]:
                    expected[b, i, j] = labels[b, row, column]
    np.testing.assert_array_equal(warp_labels(jnp.asarray(labels), jnp.asarray(thetas)), expected)
    assert (expected == IGNORE).any()


def test_validity_is_where_every_source_is_real():
    thetas = random_thetas(seed=8)
    real = np.zeros((3, *SIZE), bool)
    real[:, 1:, :6] = True
    result = np.asarray(validity(jnp.asarray(thetas), jnp.asarray(real)))
    expected = np.zeros_like(real)
    for b, theta in enumerate(thetas.astype(np.float64)):
        for i in range(SIZE[0]):
            for j in range(SIZE[1]):
                row, column = references.source_position(theta, i, j, SIZE)
                # Everything between the first and the last real centre mixes real pixels only.
                expected[b, i, j] = 1 <= row <= SIZE[0] - 1 and 0 <= column <= 5
    np.testing.assert_array_equal(result, expected)
    assert 0 < expected.mean() < 1


def test_box_mask_by_hand():
    box = jnp.asarray([[2, 0, 6, 5], [0, 0, 8, 12], [3, 4, 3, 4], [1, 2, 5, 10]])
    mask = np.asarray(box_mask(box, (4, 3), (8, 12)))
    # Centres of the cells: rows 1 3 5 7, columns 2 6 10.
    np.testing.assert_array_equal(mask[0], np.array([[0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]], dtype=bool))
    assert mask[1].all()
    assert not mask[2].any()
    # Centres on the box's edges: the first edge belongs to it, the last does not.
    np.testing.assert_array_equal(mask[3], np.array([[1, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]], dtype=bool))


def test_box_is_half_open():
    mask = box_mask(jnp.asarray([[1, 2, 3, 4]]), (4, 5), (4, 5))
    expected = np.zeros((1, 4, 5), bool)
    expected[:, 1:3, 2:4] = True
    np.testing.assert_array_equal(mask, expected)


def parts_of(theta):
    """Scale, angle in degrees, mirrored or not, and shift of the content as a share of the side.

    The content is mirrored, then scaled and rotated, then shifted; theta is the inverse of that.
    """
    forward = np.linalg.inv(np.concatenate([theta, np.tile([[[0, 0, 1]]], (len(theta), 1, 1))], axis=1))
    mirrored = np.linalg.det(forward[:, :2, :2]) < 0
    scale = np.sqrt(np.abs(np.linalg.det(forward[:, :2, :2])))
    rotation = forward[:, :2, :2] / scale[:, None, None]
    rotation[:, :, 0] *= np.where(mirrored, -1, 1)[:, None]
    np.testing.assert_allclose(
        rotation @ rotation.swapaxes(1, 2), np.tile(np.eye(2), (len(theta), 1, 1)), atol=1e-4
    )
    angle = np.degrees(np.arctan2(rotation[:, 1, 0], rotation[:, 0, 0]))
    return scale, angle, mirrored, forward[:, :2, 2] / 2


@pytest.mark.parametrize("ranges", [AffineRange(), AffineRange((0.3, 0.6), 40.0, 0.25, 0.9)])
def test_sampled_transforms_fill_their_ranges(ranges):
    theta = np.asarray(sample_affine(jax.random.key(0), 2000, ranges), np.float64)
    assert theta.shape == (2000, 2, 3)
    assert len(np.unique(theta.round(6), axis=0)) == 2000, "every image has its own"
    scale, angle, mirrored, shift = parts_of(theta)
    low, high = ranges.scale
    for values, bottom, top in (
        (scale, low, high),
        (angle, -ranges.rotation, ranges.rotation),
        (shift[:, 0], -ranges.translation, ranges.translation),
        (shift[:, 1], -ranges.translation, ranges.translation),
    ):
        slack = 0.02 * (top - bottom)
        assert bottom - 1e-3 * slack - 1e-4 <= values.min() < bottom + slack
        assert top - slack < values.max() <= top + 1e-3 * slack + 1e-4
        assert values.mean() == pytest.approx((bottom + top) / 2, abs=3 * slack)
    assert mirrored.mean() == pytest.approx(ranges.flip, abs=0.05)
    # Drawn independently: no two parts are correlated.
    parts = np.stack([scale, angle, mirrored, shift[:, 0], shift[:, 1]])
    assert np.abs(np.corrcoef(parts) - np.eye(5)).max() < 0.1


def test_ranges_of_no_width_give_the_known_transform():
    still = AffineRange(scale=(1.0, 1.0), rotation=0.0, translation=0.0, flip=0.0)
    np.testing.assert_allclose(sample_affine(jax.random.key(1), 1, still)[0], IDENTITY, atol=1e-6)
    halved = AffineRange(scale=(0.5, 0.5), rotation=0.0, translation=0.0, flip=1.0)
    theta = sample_affine(jax.random.key(1), 1, halved)[0]
    np.testing.assert_allclose(theta, [[-2, 0, 0], [0, 2, 0]], atol=1e-6)


def test_sampling_depends_on_the_key_only():
    first, again, other = (sample_affine(jax.random.key(k), 2, AffineRange()) for k in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def make_theta(scale, degrees, right, down, mirror):
    """Content mirrored, scaled, rotated and moved (shares of the side)."""
    angle = math.radians(degrees)
    turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    forward = np.eye(3)
    forward[:2, :2] = turn @ np.diag([-1 if mirror else 1, 1])
    forward[:2, 2] = 2 * right, 2 * down
    return np.linalg.inv(forward)


TRANSFORMS = st.builds(
    make_theta,
    st.floats(0.6, 1.0),
    st.floats(-15, 15),
    st.floats(-0.1, 0.1),
    st.floats(-0.1, 0.1),
    st.booleans(),
)


@settings(max_examples=15)
@given(TRANSFORMS)
def test_there_and_back_again_returns_the_interior(theta):
    y, x = np.meshgrid(np.linspace(0, 2, 24), np.linspace(0, 2, 24), indexing="ij")
    smooth = np.stack([np.sin(x + 2 * y), np.cos(2 * x - y), np.ones_like(x)], axis=-1)[None]
    there = jitted_warp(jnp.asarray(smooth, jnp.float32), theta_of(theta[:2]))
    back = np.asarray(jitted_warp(there, theta_of(np.linalg.inv(theta)[:2])))[0]
    kept = back[..., 2] > 0.9999
    assert kept.mean() > 0.4
    np.testing.assert_allclose(back[kept], smooth[0][kept], atol=0.03)


@settings(max_examples=10)
@given(TRANSFORMS, st.integers(0, 2**32 - 1))
def test_warp_commutes_with_affine_maps_of_the_channels_where_valid(theta, seed):
    rng = np.random.default_rng(seed)
    x, mix, offset = (rng.normal(size=shape).astype(np.float32) for shape in ((1, 24, 24, 3), (3, 3), (3,)))
    theta = theta_of(theta[:2])
    moved = np.asarray(jitted_warp(jnp.asarray(x), theta))
    mixed = np.asarray(jitted_warp(jnp.asarray(x @ mix + offset), theta))
    valid = np.asarray(validity(theta, jnp.ones((1, 24, 24), bool)))
    assert valid.any()
    np.testing.assert_allclose(mixed[valid], (moved @ mix + offset)[valid], atol=1e-3)


def test_warp_keeps_the_type(image):
    assert warp(jnp.asarray(image[:1], jnp.bfloat16), theta_of(FLIP)).dtype == jnp.bfloat16
