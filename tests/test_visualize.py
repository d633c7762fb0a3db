"""Pictures: the VOC colours, what stays untouched, shapes."""

import numpy as np
import pytest

from rml_jax import visualize

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("label", "color"),
    [
        (0, (0, 0, 0)),
        (1, (128, 0, 0)),
        (2, (0, 128, 0)),
        (3, (128, 128, 0)),
        (8, (64, 0, 0)),
        (15, (192, 128, 128)),
        (20, (0, 64, 128)),
        (255, (224, 224, 192)),
    ],
)
def test_palette_is_that_of_voc(label, color):
    assert tuple(visualize.palette()[label]) == color


def test_palette_tells_all_labels_apart():
    assert len(np.unique(visualize.palette(), axis=0)) == 256


def test_palette_cannot_be_changed_by_a_caller():
    with pytest.raises(ValueError, match="read-only"):
        visualize.palette()[0] = 1


def test_colorize():
    np.testing.assert_array_equal(
        visualize.colorize(np.array([[0, 1, 255]], np.uint8)), [[(0, 0, 0), (128, 0, 0), (224, 224, 192)]]
    )


def test_overlay_leaves_background_untouched_and_paints_the_rest():
    mask = np.zeros((6, 8), np.uint8)
    mask[2:4, 3:5] = 2
    mask[5] = 255
    picture = visualize.overlay(IMAGE, mask)
    np.testing.assert_array_equal(picture[mask == 0], IMAGE[mask == 0])
    np.testing.assert_array_equal(
        visualize.overlay(IMAGE, mask, alpha=1.0)[mask > 0], visualize.colorize(mask)[mask > 0]
    )
    assert picture.dtype == np.uint8


def test_overlay_by_hand():
    grey = np.full((1, 1, 3), 100, np.uint8)
    picture = visualize.overlay(grey, np.ones((1, 1), np.uint8), alpha=0.5)
    np.testing.assert_array_equal(picture, [[(114, 50, 50)]])


def test_heat_map_brightens_with_the_score():
    scores = np.linspace(0, 1, 11)[None]
    picture = visualize.heat_map(np.full((1, 11, 3), 128, np.uint8), scores)
    assert picture.shape == (1, 11, 3)
    assert picture.dtype == np.uint8
    lightness = picture.astype(float) @ [0.299, 0.587, 0.114]
    assert (np.diff(lightness[0]) > 0).all()


def test_heat_map_clamps_scores_and_fills_the_range_of_the_picture():
    white, black = np.full((1, 2, 3), 255, np.uint8), np.zeros((1, 2, 3), np.uint8)
    outside, ends = np.array([[-0.1, 1.1]]), np.array([[0.0, 1.0]])
    for image in (white, black):
        np.testing.assert_array_equal(visualize.heat_map(image, outside), visualize.heat_map(image, ends))
    assert visualize.heat_map(white, ends).max() > 250
    assert visualize.heat_map(black, ends).min() == 0


@pytest.mark.parametrize("function", [visualize.overlay, visualize.heat_map])
def test_size_mismatch_is_refused(function):
    with pytest.raises(ValueError, match="shape"):
        function(IMAGE, np.zeros((8, 6), np.uint8))


def test_grid_enlarges_tiny_pictures_pixel_by_pixel():
    picture = visualize.grid([[IMAGE]])
    # 6x8 needs the factor 22 for its shorter side to reach 128.
    np.testing.assert_array_equal(picture, np.kron(IMAGE, np.ones((22, 22, 1), np.uint8)))


def test_grid_places_pictures_of_different_sizes():
    def plain(height, width, value):
        return np.full((height, width, 3), value, np.uint8)

    rows = [[plain(130, 140, 1), plain(150, 200, 2)], [plain(128, 160, 3), plain(140, 128, 4)]]
    picture = visualize.grid(rows)
    assert picture.shape == (150 + 4 + 140, 160 + 4 + 200, 3)
    np.testing.assert_array_equal(picture[:130, :140], rows[0][0])
    np.testing.assert_array_equal(picture[:150, 164:364], rows[0][1])
    np.testing.assert_array_equal(picture[154:282, :160], rows[1][0])
    np.testing.assert_array_equal(picture[154:, 164:292], rows[1][1])
    assert (picture[150:154] == 255).all()


@pytest.mark.parametrize("rows", [[], [[]], [[IMAGE], [IMAGE, IMAGE]]])
def test_grid_refuses_nothing_and_ragged_rows(rows):
    with pytest.raises(ValueError, match=r"at least one picture|zip\(\) argument"):
        visualize.grid(rows)
