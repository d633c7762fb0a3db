"""`rml_jax.load` and what it gives, beside the evaluator and by hand."""

import subprocess
import sys

import numpy as np
import pytest
from flax import nnx
from PIL import Image

import rml_jax
from rml_jax.evaluation.evaluator import Evaluator
from rml_jax.inference.predictor import as_image
from rml_jax.ops.contrast import region_contrast
from rml_jax.utils.errors import UserError
from tests.conftest import INSECTS as CLASSES

SIZES = [(32, 32), (20, 44), (5, 31)]  # the last is too small for the network


@pytest.fixture(scope="module")
def predictor(model_folder):
    return rml_jax.load(model_folder)


@pytest.fixture(scope="module")
def images(noise):
    return [noise(*size, seed) for seed, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def results(predictor, images):
    tags = [None, ("ant", " COW "), None]
    return dict(predictor.stream(zip(range(3), images, tags, strict=True)))


class Source:
    def __init__(self, images):
        self._images = images

    def __len__(self):
        return len(self._images)

    def __getitem__(self, index):
        image = self._images[index]
        mask = np.zeros(image.shape[:2], np.uint8)
        return {"id": index, "image": image, "mask": mask, "tags": np.array([1, 0, 1], np.float32)}


def evaluated(network, images):
    """The evaluator's masks: dict (protocol, stage, number) -> mask."""
    config, params = network
    evaluator = Evaluator(config, nnx.split(nnx.eval_shape(lambda: _model(config)))[0])
    masks = {}

    def save(protocol, stage, number, mask):
        masks[protocol, stage, number] = mask

    evaluator.evaluate(params, Source(images), evaluator.fixed_backgrounds(), lambda done: None, save)
    return masks


def _model(config):
    from rml_jax.models import build

    return build.build_model(config, seed=0)


def test_masks_are_the_evaluators(network, model_folder, noise, images, results):
    """Also of an image that is reduced because it is larger than every canvas."""
    large = noise(50, 90)
    masks = evaluated(network, [*images, large])
    for number, protocol in ((0, "predicted"), (1, "given"), (2, "predicted")):
        np.testing.assert_array_equal(results[number].mask, masks[protocol, "par", number])
    reduced = rml_jax.load(model_folder, large="reduce")(large)
    assert reduced.tiles == 1
    np.testing.assert_array_equal(reduced.mask, masks["predicted", "par", 3])


def test_the_background_score_of_the_most_contrast_is_chosen(model_folder, images):
    """Against the masks that prediction by `par` gives at every score of the grid; it is used for all stages."""
    tags, mean = ("ant", "cow"), {}
    predictor = rml_jax.load(model_folder, stage="cam")
    some = images[:2]
    for score in predictor.config.eval.sweep.grid:
        one = rml_jax.load(model_folder, stage="par", background=score)
        mean[score] = np.mean([contrast_of(one(image, tags=tags).mask, image) for image in some])
    chosen = predictor.choose_background((image, tags) for image in some)
    assert chosen == predictor.background == predictor.settings()["background"]
    assert mean[chosen] == pytest.approx(max(mean.values()), rel=1e-4)
    assert max(mean.values()) > 2 * mean[0.95]


def test_without_classes_the_background_score_is_kept(model_folder, images):
    predictor = rml_jax.load(model_folder, background=0.4)
    assert predictor.choose_background((image, ()) for image in images) == 0.4


def contrast_of(mask, image):
    real = np.ones((1, *mask.shape), bool)
    return float(region_contrast(mask[None, None].astype(int), image[None], real, 4)[0, 0])


def test_each_image_may_have_its_own_score(model_folder, images):
    """With a great weight, masks have at least the contrast that the fixed score gives."""
    fixed, chosen = (
        rml_jax.load(model_folder, stage="cam", background=0.4, region_contrast=weight) for weight in (0, 1e6)
    )
    assert chosen.settings()["region_contrast"] == 1e6
    gains = [
        contrast_of(chosen(image, tags=("ant", "cow")).mask, image)
        - contrast_of(fixed(image, tags=("ant", "cow")).mask, image)
        for image in images[:2]
    ]
    assert min(gains) >= 0
    assert max(gains) > 1e-4


def test_parts_of_a_prediction_fit_each_other(results):
    assert results.keys() == {0, 1, 2}
    for number, result in results.items():
        assert result.classes == CLASSES
        found = np.array([0, *(1 + CLASSES.index(tag) for tag in result.tags)], np.uint8)
        assert result.mask.shape == SIZES[number]
        assert result.probabilities.shape == (*SIZES[number], len(found))
        assert result.cams.shape == (*SIZES[number], len(found) - 1)
        np.testing.assert_allclose(result.probabilities.sum(axis=-1), 1, rtol=1e-4)
        assert 0 <= result.cams.min(initial=0) <= result.cams.max(initial=0) <= 1
        for tag, score in result.tags.items():
            assert score == pytest.approx(result.scores[CLASSES.index(tag)])
        if min(SIZES[number]) > 8:
            np.testing.assert_array_equal(result.mask, found[result.probabilities.argmax(axis=-1)])
    assert list(results[1].tags) == ["ant", "cow"]
    assert set(results[0].tags) == {
        name for name, s in zip(CLASSES, results[0].scores, strict=True) if s > 0.5
    }


def test_one_image_alone_is_the_same_as_in_a_batch(predictor, images, results):
    alone = predictor(images[0])
    np.testing.assert_array_equal(alone.mask, results[0].mask)
    np.testing.assert_allclose(alone.cams, results[0].cams, atol=1e-5)


def test_options(model_folder, images):
    everything = rml_jax.load(model_folder, stage="cam", background=0.0, tag_threshold=0.0)(images[0])
    assert tuple(everything.tags) == CLASSES
    assert everything.mask.all(), "nothing is below a background score of 0"
    nothing = rml_jax.load(model_folder, stage="cam", tag_threshold=1.0)(images[0])
    assert (nothing.tags, nothing.mask.any(), nothing.cams.shape) == ({}, False, (32, 32, 0))


def test_masks_do_not_depend_on_whether_maps_are_asked_for(model_folder, images, results):
    """Also of an image without tags, which is background."""
    tags = [None, ("ant", "cow"), ()]
    stream = rml_jax.load(model_folder).stream(zip(range(3), images, tags, strict=True), with_maps=False)
    masks = {number: prediction.mask for number, prediction in stream}
    for number in (0, 1):
        np.testing.assert_array_equal(masks[number], results[number].mask)
    np.testing.assert_array_equal(masks[2], np.zeros(SIZES[2]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stage": "crf+crf"}, "eval.stages"),
        ({"scales": (0.1,)}, "eval.canvases"),
        ({"background": -1}, "background is -1"),
        ({"background": float("nan")}, "background is nan"),
        ({"region_contrast": -1}, "region_contrast is -1"),
        ({"region_contrast": float("inf")}, "region_contrast is inf"),
        ({"tag_threshold": 2}, "tag_threshold is 2"),
        ({"large": "huge"}, "tiles, reduce"),
    ],
)
def test_options_that_are_wrong(model_folder, options, words):
    with pytest.raises(UserError, match=words):
        rml_jax.load(model_folder, **options)


def test_unknown_tag(predictor, images):
    with pytest.raises(UserError, match="unknown tag 'dog': expected some of ant, bee, cow"):
        predictor(images[0], tags=["ant", "dog"])


def test_folder_without_a_model(tmp_path):
    with pytest.raises(UserError, match="found no model"):
        rml_jax.load(tmp_path)


# --- Tiles ---


def test_an_image_in_one_tile_is_the_image_on_its_canvas(predictor, images, noise):
    """The two passes over the tiles find what the one pass finds."""
    image = noise(32, 48)
    item = {"image": image, "given": np.array([True, False, True])}
    tiled = predictor._in_tiles(item, True, batch_size=2)
    whole = predictor(image, tags=("ant", "cow"))
    np.testing.assert_allclose(tiled.scores, whole.scores, atol=1e-5)
    np.testing.assert_allclose(tiled.cams, whole.cams, atol=1e-4)
    np.testing.assert_allclose(tiled.probabilities, whole.probabilities, atol=1e-4)
    assert np.mean(tiled.mask != whole.mask) < 0.01


def test_a_large_image(predictor, noise):
    image = noise(70, 100)
    result = predictor(image, tags=("ant", "bee"))
    assert result.tiles == 3 * 3
    assert result.mask.shape == (70, 100)
    np.testing.assert_array_equal(result.mask, result.probabilities.argmax(axis=-1))
    # Scaled over the whole image, not tile by tile.
    assert result.cams.max() > 0.7
    ((_, without),) = predictor.stream([(0, image, ("ant", "bee"))], with_maps=False)
    assert (without.cams, without.probabilities) == (None, None)
    assert np.mean(without.mask != result.mask) < 0.01


def test_a_large_image_among_small_ones(predictor, images, noise):
    stream = [("a", images[0], None), ("large", noise(40, 100), None), ("b", images[0], None)]
    results = dict(predictor.stream(stream, with_maps=False))
    assert {key: result.mask.shape for key, result in results.items()} == {
        "a": (32, 32),
        "large": (40, 100),
        "b": (32, 32),
    }
    np.testing.assert_array_equal(results["a"].mask, results["b"].mask)


# --- Images of every mode ---


def test_images_of_every_mode(tmp_path, noise):
    pixels = noise(4, 6)
    np.testing.assert_array_equal(as_image(pixels), pixels)
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6)
    np.testing.assert_array_equal(as_image(grey), np.repeat(grey[..., None], 3, axis=-1))
    clear = np.dstack([pixels, np.zeros((4, 6), np.uint8)])
    np.testing.assert_array_equal(as_image(clear), np.full((4, 6, 3), 255))
    assert as_image(Image.fromarray(pixels).convert("CMYK")).shape == (4, 6, 3)
    deep = grey.astype(np.uint16) * 257
    stretched = np.arange(24).reshape(4, 6) * 255 // 23
    for image in (Image.fromarray(deep), deep, deep.astype(np.int64) - 1000):
        np.testing.assert_array_equal(as_image(image)[..., 0], stretched)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: turn clockwise to view
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(as_image(tmp_path / "turned.png"), np.rot90(pixels, -1))
    Image.new("RGB", (1, 1), "red").save(tmp_path / "dot.png")
    np.testing.assert_array_equal(as_image(str(tmp_path / "dot.png")), [[[255, 0, 0]]])


@pytest.mark.parametrize(
    "array", [np.zeros((4, 6, 3)), np.zeros((4, 6, 2), np.uint8), np.zeros((0, 6), np.uint8)]
)
def test_arrays_that_are_no_images(array):
    with pytest.raises(UserError, match="expected uint8"):
        as_image(array)


def test_an_image_of_one_pixel(predictor):
    assert predictor(np.full((1, 1, 3), 9, np.uint8)).mask.shape == (1, 1)


def test_importing_the_package_imports_nothing_else():
    program = (
        "import sys, rml_jax; print('jax' in sys.modules, 'numpy' in sys.modules, 'load' in rml_jax.__all__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False False True\n"
