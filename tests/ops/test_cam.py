"""CAMs: by hand, with simple functions in the network's place."""

import jax.numpy as jnp
import numpy as np
import pytest

from rml_jax.ops.cam import (
    cam_to_labels,
    class_activation_maps,
    map_extremes,
    min_max_normalize,
    multi_scale_cam,
)
from tests.references import loops as references


def one_map(rows):
    return jnp.asarray(rows, jnp.float32)[None, :, :, None]


def pool(images, stride):
    batch, height, width, channels = images.shape
    return images.reshape(batch, height // stride, stride, width // stride, stride, channels).mean((2, 4))


def classify_by_mean(images):
    """Cells of 2x2 pixels: the mean of red, and green minus blue."""
    cells = pool(images, 2)
    return None, jnp.stack([cells[..., 0], cells[..., 1] - cells[..., 2]], axis=-1)


def images(seed=0, size=(8, 12)):
    return np.random.default_rng(seed).normal(size=(2, *size, 3)).astype(np.float32)


def test_min_max_by_hand():
    result = min_max_normalize(one_map([[1, 3], [-1, 7]]))
    np.testing.assert_allclose(result[0, :, :, 0], [[0.25, 0.5], [0, 1]], atol=1e-5)


def test_constant_map_becomes_zero():
    np.testing.assert_array_equal(min_max_normalize(one_map([[5, 5], [5, 5]])), np.zeros((1, 2, 2, 1)))
    np.testing.assert_array_equal(class_activation_maps(one_map([[-5, -3]])), np.zeros((1, 1, 2, 1)))


def test_each_image_and_class_is_scaled_on_its_own():
    x = images()
    result = min_max_normalize(jnp.asarray(x))
    np.testing.assert_allclose(result, references.min_max_normalize(x), atol=1e-6)


def test_min_max_of_padded_maps_is_that_of_each_alone():
    maps = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype(np.float32)
    found = np.asarray(min_max_normalize(jnp.asarray(maps), jnp.asarray([[4, 5], [3, 2]])))
    np.testing.assert_array_equal(found[0], min_max_normalize(maps[:1])[0])
    np.testing.assert_array_equal(found[1, :3, :2], min_max_normalize(maps[1:, :3, :2])[0])
    assert np.count_nonzero(found[1]) <= 3 * 2 * 3, "0 outside"


def test_min_max_of_tiles_is_that_of_the_whole():
    maps = np.random.default_rng(1).normal(size=(1, 4, 6, 2)).astype(np.float32)
    tiles = np.concatenate([maps[:, :, :3], maps[:, :, 3:]])
    extremes = [np.repeat(values, 2, axis=0) for values in map_extremes(maps)]
    found = np.concatenate(min_max_normalize(tiles, extremes=extremes), axis=1)
    np.testing.assert_array_equal(found, min_max_normalize(maps)[0])


def test_class_activation_maps_cut_negatives_before_scaling():
    result = class_activation_maps(one_map([[-2, 1], [0, 4]]))
    np.testing.assert_allclose(result[0, :, :, 0], [[0, 0.25], [0, 1]], atol=1e-5)


def test_one_scale_without_flip_is_the_resized_map():
    x = images()
    cells = pool(x, 2)
    cells = np.stack([cells[..., 0], cells[..., 1] - cells[..., 2]], axis=-1)
    expected = references.min_max_normalize(references.resize_bilinear(np.maximum(cells, 0), (8, 12)))
    result = multi_scale_cam(classify_by_mean, jnp.asarray(x), scales=(1.0,), flip=False, stride=2)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_scales_are_summed_after_relu_and_resize():
    x = images(1)
    total = 0
    for size in ((4, 6), (8, 12), (12, 18)):
        cells = pool(references.resize_bilinear(x, size), 2)
        cells = np.stack([cells[..., 0], cells[..., 1] - cells[..., 2]], axis=-1)
        total = total + references.resize_bilinear(np.maximum(cells, 0), (8, 12))
    result = multi_scale_cam(classify_by_mean, jnp.asarray(x), scales=(0.5, 1, 1.5), flip=False, stride=2)
    np.testing.assert_allclose(result, references.min_max_normalize(total), atol=1e-5)


def test_network_sees_every_scale_but_never_less_than_a_cell():
    seen = []

    def classify(images):
        seen.append(images.shape)
        return None, images[:, ::4, ::4, :1]

    x = jnp.asarray(images(size=(4, 12)))
    multi_scale_cam(classify, x, scales=(0.5, 1.0, 1.5), flip=True, stride=4)
    assert seen == [(4, 4, 6, 3), (4, 4, 12, 3), (4, 6, 18, 3)]


def test_flip_takes_the_greater_of_the_map_and_its_mirror_back():
    # Sees only the left half of an image; the mirror shows it the right half.
    def classify(images):
        width = images.shape[2]
        return None, images[..., :1] * (jnp.arange(width) < width // 2)[:, None]

    row = [1.0, 2.0, 4.0, 3.0]
    x = jnp.tile(jnp.asarray(row)[None, None, :, None], (1, 2, 1, 3))
    result = multi_scale_cam(classify, x, scales=(1.0,), flip=True, stride=1)
    np.testing.assert_allclose(result[0, 0, :, 0], [0, 1 / 3, 1, 2 / 3], atol=1e-5)
    without = multi_scale_cam(classify, x, scales=(1.0,), flip=False, stride=1)
    np.testing.assert_allclose(without[0, 0, :, 0], [0.5, 1, 0, 0], atol=1e-5)


def test_cam_of_the_mirrored_image_is_the_mirrored_cam():
    def lopsided(images):
        cells = pool(images, 2)[..., :2]
        return None, cells + jnp.roll(cells, 1, axis=2) * 0.5

    x = images(2)
    cams = multi_scale_cam(lopsided, jnp.asarray(x), scales=(0.5, 1.0), flip=True, stride=2)
    mirrored = multi_scale_cam(lopsided, jnp.asarray(x[:, :, ::-1]), scales=(0.5, 1.0), flip=True, stride=2)
    np.testing.assert_allclose(mirrored, cams[:, :, ::-1], atol=1e-5)


@pytest.mark.parametrize(
    ("scores", "tags", "label"),
    [
        ([0.5, 0.9, 0.1], [1, 1, 1], 2),
        ([0.5, 0.9, 0.1], [1, 0, 1], 1),
        ([0.45, 0.9, 0.1], [1, 0, 1], 0),  # at the threshold: background
        ([0.46, 0.9, 0.1], [1, 0, 1], 1),
        ([0.5, 0.9, 0.7], [0, 0, 1], 3),
        ([0.9, 0.9, 0.9], [0, 0, 0], 0),
    ],
)
def test_labels_by_hand(scores, tags, label):
    cams = jnp.asarray(scores, jnp.float32)[None, None, None, :]
    assert cam_to_labels(cams, jnp.asarray([tags]), 0.45).tolist() == [[[label]]]


def test_tags_are_each_images_own():
    cams = jnp.full((2, 1, 2, 2), 0.8)
    labels = cam_to_labels(cams, jnp.asarray([[True, False], [False, True]]), 0.45)
    np.testing.assert_array_equal(labels, [[[1, 1]], [[2, 2]]])
    assert labels.dtype == jnp.int32
