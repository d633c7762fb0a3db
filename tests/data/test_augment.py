"""The augmentation: the box marks the real pixels, and nothing but them, for any size, scale and seed."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rml_jax.data.augment import augment, change_light, random_overlap, rescaled_size, resize_window

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
    views = [augment(image, rng, crop_size=3, scale=(1.0, 1.0), flip=False) for _ in range(200)]
    rows = {
        int(np.flatnonzero((image == view["image"][0, view["box"][1]]).all(-1).any(-1))[0]) for view in views
    }
    assert rows == {0, 1, 2}
    assert {tuple(view["box"].tolist()) for view in views} == {(0, 0, 3, 2), (0, 1, 3, 3)}


def test_flip_mirrors_columns_half_of_the_time():
    image = picture(6, 6)
    rng = np.random.default_rng(0)
    flipped = 0
    for _ in range(400):
        result = augment(image, rng, crop_size=6, scale=(1.0, 1.0), flip=True)["image"]
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


def whole_then_cut(image, rng, crop_size, scale, flip):
    """The augmentation step by step, each on the whole image: the slow form, with the documented draws."""
    height, width = (
        max(1, round(side * factor)) for factor in [rng.uniform(*scale)] for side in image.shape[:2]
    )
    if (height, width) != image.shape[:2]:
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    if flip and rng.random() < 0.5:
        image = image[:, ::-1]
    crop = np.zeros((crop_size, crop_size, 3), np.uint8)
    places = [random_overlap(side, crop_size, rng) for side in (height, width)]
    crop[tuple(to for _, to in places)] = image[tuple(source for source, _ in places)]
    return crop


@settings(max_examples=200)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 64), st.floats(0.1, 3.0), st.booleans(), SEEDS)
def test_window_alone_has_the_pixels_of_the_whole(height, width, crop_size, factor, flip, seed):
    image, scale = picture(height, width, seed), (factor, factor)
    expected = whole_then_cut(image, np.random.default_rng(seed), crop_size, scale, flip)
    view = augment(image, np.random.default_rng(seed), crop_size=crop_size, scale=scale, flip=flip)
    assert np.abs(view["image"].astype(int) - expected).max() <= 2


def test_window_alone_seldom_rounds_otherwise():
    image = picture(375, 500)
    for factor in (0.6, 1.3, 1.9):
        expected = whole_then_cut(image, np.random.default_rng(1), 320, (factor, factor), True)
        view = augment(image, np.random.default_rng(1), crop_size=320, scale=(factor, factor), flip=True)
        assert (view["image"] != expected).mean() < 0.06


def test_unit_scale_keeps_every_pixel():
    image = picture(7, 9)
    np.testing.assert_array_equal(resize_window(image, (7, 9), slice(2, 5), slice(1, 9)), image[2:5, 1:9])


@given(SIDES, SIDES, st.floats(0.1, 3.0))
def test_rescaled_size_keeps_the_aspect(height, width, factor):
    result = rescaled_size((height, width), factor)
    assert abs(result[0] - max(1, height * factor)) <= 0.5
    assert abs(result[1] - max(1, width * factor)) <= 0.5


def test_scales_span_their_range():
    boxes = [
        augment(picture(40, 40), np.random.default_rng(seed), crop_size=100, scale=(0.5, 2.0), flip=False)[
            "box"
        ]
        for seed in range(100)
    ]
    sides = [box[2] - box[0] for box in boxes]
    assert 20 <= min(sides) < 25
    assert 75 < max(sides) <= 80


def test_rescale_keeps_a_constant_and_a_ramp():
    constant = np.full((10, 12, 3), 77, np.uint8)
    assert (resize_window(constant, (17, 20), slice(3, 17), slice(0, 9)) == 77).all()
    ramp = np.repeat(np.arange(0, 200, 10, np.uint8)[None, :, None], 4, axis=0).repeat(3, axis=2)
    part = resize_window(ramp, (8, 40), slice(3, 4), slice(2, 38))
    # Half-pixel centres: new pixel j lies at (j + 0.5) / 2 - 0.5 of the old grid.
    expected = 10 * ((np.arange(40) + 0.5) / 2 - 0.5)
    np.testing.assert_allclose(part[0, :, 1], expected[2:-2], atol=0.5)


def test_same_generator_state_gives_the_same_view():
    image = picture(30, 20)
    views = [
        augment(image, np.random.default_rng(seed), crop_size=16, scale=(0.5, 2.0), flip=True)
        for seed in (5, 5, 6)
    ]
    np.testing.assert_array_equal(views[0]["image"], views[1]["image"])
    np.testing.assert_array_equal(views[0]["box"], views[1]["box"])
    assert not np.array_equal(views[0]["image"], views[2]["image"])


def test_without_light_the_random_draws_are_as_before():
    """Another draw would change every later one, and with it what a seed means."""
    rngs = [np.random.default_rng(3) for _ in range(2)]
    augment(picture(9, 9), rngs[0], crop_size=6, scale=(0.8, 1.2), flip=True)
    rngs[1].uniform(0.8, 1.2)
    rngs[1].random()
    size = rescaled_size((9, 9), np.random.default_rng(3).uniform(0.8, 1.2))
    for length in size:
        random_overlap(length, 6, rngs[1])
    assert rngs[0].random() == rngs[1].random()


@given(SEEDS)
def test_contrast_and_brightness_move_differences_and_mean_only(seed):
    image = np.full((8, 8, 3), 120, np.uint8)
    image[:4] = 136
    changed = change_light(image, np.random.default_rng(seed), contrast=0.7, brightness=0.1, noise=0.0)
    dark, light = np.unique(changed)
    assert (changed[:4] == light).all()
    assert 16 / 2.02 - 1 <= int(light) - int(dark) <= 16 * 2.02 + 1
    assert abs((int(light) + int(dark)) / 2 - 128) <= 0.1 * 255 + 1


def test_noise_is_grey_and_at_most_as_strong_as_said():
    image = np.full((64, 64, 3), 128, np.uint8)
    deviations = []
    for seed in range(40):
        changed = change_light(image, np.random.default_rng(seed), contrast=0.0, brightness=0.0, noise=0.1)
        assert (changed == changed[..., :1]).all()
        deviations.append(changed[..., 0].std())
    assert max(deviations) <= 1.1 * 25.5
    assert max(deviations) > 15
    assert np.median(deviations) < 12


def test_padding_stays_black_when_the_light_changes():
    options = {"contrast": 0.5, "brightness": 0.5, "noise": 0.2}
    view = augment(
        picture(8, 8), np.random.default_rng(0), crop_size=12, scale=(1.0, 1.0), flip=False, **options
    )
    assert (view["image"][~inside(view)] == 0).all()
