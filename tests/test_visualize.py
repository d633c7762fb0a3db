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
    # In CIELAB, whose unit is about the least difference one sees, and by formulas other than the palette's own.
    rgb = visualize.palette() / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = (
        linear
        @ np.array([(0.4124, 0.2126, 0.0193), (0.3576, 0.7152, 0.1192), (0.1805, 0.0722, 0.9505)])
        / (0.9505, 1.0, 1.089)
    )
    root = np.where(xyz > 216 / 24389, np.cbrt(xyz), xyz * 24389 / 27 / 116 + 16 / 116)
    lab = np.stack(
        [116 * root[:, 1] - 16, 500 * (root[:, 0] - root[:, 1]), 200 * (root[:, 1] - root[:, 2])], axis=-1
    )
    distance = np.linalg.norm(lab[:, None] - lab, axis=-1)
    np.fill_diagonal(distance, np.inf)
    # VOC's colour map comes to 8.8 among its own 21, to 2.6 among 81 (COCO's classes) and to 1.3 among all.
    assert distance[:81, :81].min() > 8
    assert distance.min() > 4


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


def test_affinity_map_enlarges_the_grid_and_rings_the_pixel():
    grey = np.full((60, 90, 3), 128, np.uint8)
    affinity = np.zeros((6, 9))
    affinity[1, 7] = 1
    picture = visualize.affinity_map(grey, affinity, (15, 75))
    assert picture.shape == grey.shape
    plain = visualize.affinity_map(grey, np.zeros((6, 9)), (15, 75))
    changed = (picture != plain).any(axis=-1)
    # A cell spreads over two cells' sides by bilinear interpolation, no farther.
    assert changed[[9, 21, 15, 15], [75, 75, 69, 81]].all()
    changed[5:25, 65:85] = False
    assert not changed.any()
    ring = (picture == 255).all(axis=-1)
    rows, columns = np.nonzero(ring)
    np.testing.assert_allclose(np.hypot(rows - 15, columns - 75), 2.5, atol=0.8)


def test_affinity_map_of_the_picture_s_own_resolution_is_a_heat_map():
    affinity = np.random.default_rng(0).random((60, 90))
    grey = np.full((60, 90, 3), 128, np.uint8)
    picture = visualize.affinity_map(grey, affinity, (0, 0))
    np.testing.assert_array_equal(picture[10:], visualize.heat_map(grey, affinity)[10:])


def test_legend_shows_every_colour_beside_text():
    colors = visualize.palette()[[1, 2, 3]]
    picture = visualize.legend(["cat", "dog", "Jürgen"], colors, width=400)
    assert picture.shape[1] == 400
    lefts = [np.nonzero((picture == color).all(axis=-1))[1].min() for color in colors]
    assert lefts == sorted(set(lefts)), "side by side where there is room"
    narrow = visualize.legend(["cat", "dog", "Jürgen"], colors, width=90)
    tops = [np.nonzero((narrow == color).all(axis=-1))[0].min() for color in colors]
    assert tops == sorted(set(tops)), "else one below the other"
    assert narrow.shape[0] == 3 * picture.shape[0] - 2 * (picture.shape[0] - 18)


def test_legend_needs_a_colour_per_name():
    with pytest.raises(ValueError, match="one name per colour"):
        visualize.legend(["cat", "dog"], visualize.palette()[:1])


def test_legend_has_letters_with_accents():
    plain, accent = (visualize.legend([name], visualize.palette()[:1]) for name in "eé")
    top = slice(0, plain.shape[0] // 2)
    assert (accent[top] < 128).sum() > (plain[top] < 128).sum(), "more ink above"
    np.testing.assert_array_equal(accent[-8:], plain[-8:])


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


def test_captions_stand_above_pictures_that_stay_as_they_are():
    images = [np.full((140, 130, 3), value, np.uint8) for value in (10, 20, 30, 40)]
    rows = [images[:2], images[2:]]
    picture = visualize.grid(rows, [["short", "a text that is far too long for a single line"], ["", ""]])
    first = picture.shape[0] - 2 * 140 - 4  # what the captions take
    assert first > 2 * 13, "the long one is wrapped"
    for column, (upper, lower) in enumerate(zip(*rows, strict=True)):
        left = column * 134
        np.testing.assert_array_equal(picture[first : first + 140, left : left + 130], upper)
        np.testing.assert_array_equal(picture[first + 144 :, left : left + 130], lower)
        assert (picture[:first, left : left + 130] < 128).any(), "ink"


def test_grid_leaves_sizes_as_they_are_on_request():
    np.testing.assert_array_equal(visualize.grid([[IMAGE]], min_side=1), IMAGE)


@pytest.mark.parametrize("rows", [[], [[]], [[IMAGE], [IMAGE, IMAGE]]])
def test_grid_refuses_nothing_and_ragged_rows(rows):
    with pytest.raises(ValueError, match=r"at least one image|zip\(\) argument"):
        visualize.grid(rows)
