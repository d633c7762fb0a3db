"""Region contrast: by hand, against NumPy, and what it must not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml_jax.ops.contrast import OFFSETS, choose_score, region_contrast

HEIGHT, WIDTH = 12, 16

jitted = jax.jit(region_contrast, static_argnames="num_regions")


def contrast(masks, image, real=None, num_regions=3):
    """Returns the contrast of masks [T, H, W] with one image, [T]."""
    real = np.ones(image.shape[:2], bool) if real is None else real
    return np.asarray(jitted(jnp.asarray(masks)[:, None], jnp.asarray(image)[None], real[None], num_regions))[
        :, 0
    ]


def reference(mask, image, real):
    """The same for one mask, pixel by pixel."""
    colours = image.astype(float) / 255
    mean = colours[real].mean(axis=0)
    total = ((colours[real] - mean) ** 2).sum()
    between = 0.0
    for region in np.unique(mask[real]):
        inside = real & (mask == region)
        between += inside.sum() * ((colours[inside].mean(axis=0) - mean) ** 2).sum()
    smooth = np.zeros_like(colours)
    for y, x in np.ndindex(mask.shape):
        window = (slice(max(0, y - 1), y + 2), slice(max(0, x - 1), x + 2))
        smooth[y, x] = colours[window][real[window]].mean(axis=0) if real[window].any() else 0
    distances, contour = [], []
    for y, x in np.ndindex(mask.shape):
        for other in ((y + 1, x), (y, x + 1)):
            if other[0] < mask.shape[0] and other[1] < mask.shape[1] and real[y, x] and real[other]:
                distances.append(np.linalg.norm(smooth[y, x] - smooth[other]))
                contour.append(mask[y, x] != mask[other])
    distances, contour = np.array(distances), np.array(contour)
    relative = distances / (distances + distances.mean())
    return between / total * (relative[contour].mean() if contour.any() else 0)


def square(image_value=255.0):
    """An image that is dark but for a square, and the square's mask."""
    mask = np.zeros((HEIGHT, WIDTH), np.int32)
    mask[4:8, 5:11] = 1
    return np.where(mask[..., None] > 0, image_value, 10.0).repeat(3, axis=-1), mask


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_numpy(seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.float32)
    masks = rng.integers(0, 3, (2, HEIGHT, WIDTH))
    real = np.zeros((HEIGHT, WIDTH), bool)
    real[seed : HEIGHT - seed, 2 : WIDTH - 1] = True
    expected = [reference(mask, image, real) for mask in masks]
    np.testing.assert_allclose(contrast(masks, image, real), expected, rtol=1e-5)


def test_the_true_mask_has_the_most():
    image, mask = square()
    grown, shrunk, shifted = np.zeros_like(mask), np.zeros_like(mask), np.roll(mask, 2, axis=1)
    grown[3:9, 4:12] = 1
    shrunk[5:7, 6:10] = 1
    values = contrast(np.stack([mask, grown, shrunk, shifted, np.roll(mask, 5, axis=0)]), image)
    assert values.argmax() == 0
    assert (np.diff(values[[0, 1]]) < -0.2).all()


def test_one_region_and_one_colour_have_none():
    image, mask = square()
    assert contrast(np.stack([np.zeros_like(mask), np.ones_like(mask)]), image).tolist() == [0, 0]
    assert contrast(mask[None], np.full_like(image, 77))[0] < 1e-6


def test_brightness_and_numbers_of_regions_do_not_matter():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 100, (HEIGHT, WIDTH, 3)).astype(np.float32)
    _, mask = square()
    once = contrast(mask[None], image)
    np.testing.assert_allclose(contrast(mask[None], 2 * image + 30), once, rtol=1e-4)
    np.testing.assert_allclose(contrast(mask[None] * 2, image), once, rtol=1e-6)
    np.testing.assert_allclose(contrast(1 - mask[None], image), once, rtol=1e-5)


def test_other_pixels_take_no_part():
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.float32)
    masks = rng.integers(0, 3, (2, HEIGHT, WIDTH))
    real = np.zeros((HEIGHT, WIDTH), bool)
    real[1:9, 3:12] = True
    alone = contrast(masks[:, 1:9, 3:12], image[1:9, 3:12])
    masks[:, ~real], image[~real] = 2, 300
    np.testing.assert_allclose(contrast(masks, image, real), alone, rtol=1e-5)


def test_the_weight_decides_how_far_a_score_may_go():
    scores, values = 0.45 + np.float32(OFFSETS), np.float32([[0.9, 0, 0, 0.1, 0.3, 0.35, 0.35]])
    chosen = [OFFSETS[int(choose_score(values, scores, 0.45, weight)[1][0])] for weight in (0, 1, 4, 10, 100)]
    # A step costs 0.5, 2, 4.5: 0.1 * w against 0.3 * w - 0.5, 0.35 * w - 2 and 0.9 * w - 4.5.
    assert chosen == [0, 0, 0.1, -0.3, -0.3]


@pytest.mark.parametrize(("near", "expected"), [(0.2, -0.1), (0.0, 0.0), (1.5, 0.0)])
def test_scores_that_are_none_are_not_chosen(near, expected):
    falling = np.linspace(1, 0, len(OFFSETS), dtype=np.float32)
    scores = np.float32(near) + np.float32(OFFSETS)
    near = np.float32(near)
    assert OFFSETS[int(choose_score(falling, scores, near, 1000)[1])] == expected
