"""The augmentation: the box marks the real pixels, and nothing but them, for any size, scale and seed."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rml_jax.data.augment import augment, random_crop, random_flip, random_overlap, random_rescale

SIDES = st.integers(1, 40)
SEEDS = st.integers(0, 2**32 - 1)


def picture(height, width, seed=0):
    """Noise without a zero, so that padding can be told from real pixels."""
    return np.random.default_rng(seed).integers(1, 256, (height, width, 3)).astype(np.uint8)


def inside(view):
    """Mask [S, S] of the view's box."""
    top, left, bottom, right = view["box"]
    mask = np.zeros(view["image"].shape[:2], bool)
    mask[top:bottom, left:right] = True
    return mask


@given(SIDES, SIDES, st.integers(1, 40), st.floats(0.5, 1.0), st.floats(1.0, 2.0), st.booleans(), SEEDS)
def test_box_covers_exactly_the_real_pixels(height, width, crop_size, low, high, flip, seed):
    view = augment(
        picture(height, width),
        np.random.default_rng(seed),
        crop_size=crop_size,
        scale=(low, high),
        flip=flip,
    )
    assert view["image"].shape == (crop_size, crop_size, 3)
    assert view["image"].dtype == np.uint8
    assert view["box"].dtype == np.int32
    # Interpolation between positive bytes stays positive: zero means padding.
    np.testing.assert_array_equal((view["image"] > 0).all(axis=-1), inside(view))
    np.testing.assert_array_equal((view["image"] > 0).any(axis=-1), inside(view))


@given(SIDES, SIDES, st.integers(1, 40), SEEDS)
def test_without_scale_and_flip_the_box_holds_a_part_of_the_image(height, width, crop_size, seed):
    image = picture(height, width)
    view = augment(image, np.random.default_rng(seed), crop_size=crop_size, scale=(1.0, 1.0), flip=False)
    top, left, bottom, right = view["box"]
    shape = (min(height, crop_size), min(width, crop_size))
    assert (bottom - top, right - left) == shape
    windows = np.lib.stride_tricks.sliding_window_view(image, (*shape, 3))
    assert (windows == view["image"][top:bottom, left:right]).all(axis=(-3, -2, -1)).any()


@given(st.integers(1, 60), st.integers(1, 60), SEEDS)
def test_overlap_covers_the_shorter_axis(length, crop_size, seed):
    source, target = random_overlap(length, crop_size, np.random.default_rng(seed))
    covered = min(length, crop_size)
    assert source.stop - source.start == target.stop - target.start == covered
    assert 0 <= source.start <= source.stop <= length
    assert 0 <= target.start <= target.stop <= crop_size
    assert source.start == 0 or target.start == 0


def test_crop_reaches_every_place_per_axis():
    image = picture(5, 2)
    rng = np.random.default_rng(0)
    views = [random_crop(image, rng, 3) for _ in range(200)]
    rows = {
        int(np.flatnonzero((image == view["image"][0, view["box"][1]]).all(-1).any(-1))[0]) for view in views
    }
    assert rows == {0, 1, 2}
    assert {tuple(view["box"].tolist()) for view in views} == {(0, 0, 3, 2), (0, 1, 3, 3)}


def test_flip_mirrors_columns_half_of_the_time():
    image = picture(4, 6)
    rng = np.random.default_rng(0)
    flipped = 0
    for _ in range(400):
        result = random_flip(image, rng)
        is_mirror = np.array_equal(result, image[:, ::-1])
        assert is_mirror or np.array_equal(result, image)
        flipped += is_mirror
    assert 160 < flipped < 240


def test_augment_flips_only_when_asked():
    image = picture(8, 8)
    for flip, expected in ((False, 1), (True, 2)):
        views = [
            augment(image, np.random.default_rng(seed), crop_size=8, scale=(1.0, 1.0), flip=flip)
            for seed in range(20)
        ]
        found = {view["image"].tobytes() for view in views}
        assert len(found) == expected
        assert found <= {image.tobytes(), image[:, ::-1].tobytes()}


def test_unit_scale_returns_the_image_itself():
    image = picture(7, 9)
    assert random_rescale(image, np.random.default_rng(0), (1.0, 1.0)) is image


@settings(max_examples=50)
@given(SIDES, SIDES, SEEDS)
def test_rescale_keeps_the_aspect_and_spans_its_range(height, width, seed):
    factor = np.random.default_rng(seed).uniform(0.5, 2.0)
    result = random_rescale(picture(height, width), np.random.default_rng(seed), (0.5, 2.0))
    assert abs(result.shape[0] - max(1, height * factor)) <= 0.5
    assert abs(result.shape[1] - max(1, width * factor)) <= 0.5


def test_rescale_keeps_a_constant_and_a_ramp():
    constant = np.full((10, 12, 3), 77, np.uint8)
    assert (random_rescale(constant, np.random.default_rng(0), (1.7, 1.7)) == 77).all()
    ramp = np.repeat(np.arange(0, 200, 10, np.uint8)[None, :, None], 4, axis=0).repeat(3, axis=2)
    doubled = random_rescale(ramp, np.random.default_rng(0), (2.0, 2.0))
    # Half-pixel centres: new pixel j lies at (j + 0.5) / 2 - 0.5 of the old grid.
    expected = 10 * ((np.arange(40) + 0.5) / 2 - 0.5)
    np.testing.assert_allclose(doubled[3, 2:-2, 1], expected[2:-2], atol=0.5)


def test_same_generator_state_gives_the_same_view():
    image = picture(30, 20)
    views = [
        augment(image, np.random.default_rng(seed), crop_size=16, scale=(0.5, 2.0), flip=True)
        for seed in (5, 5, 6)
    ]
    np.testing.assert_array_equal(views[0]["image"], views[1]["image"])
    np.testing.assert_array_equal(views[0]["box"], views[1]["box"])
    assert not np.array_equal(views[0]["image"], views[2]["image"])
