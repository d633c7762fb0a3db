"""The stages of inference: the random walk by hand, and prediction against its parts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rml_jax.models import RML, RMLConfig
from rml_jax.ops.cam import cam_to_labels, multi_scale_cam, with_background
from rml_jax.ops.crf import dense_crf
from rml_jax.ops.normalize import normalize
from rml_jax.ops.par import par
from rml_jax.ops.pseudo_label import PseudoLabelConfig, tagged_slots
from rml_jax.ops.region import inside
from rml_jax.stages.config import StagesConfig
from rml_jax.stages.network import make_network
from rml_jax.stages.refine import make_link, make_refine, make_sweep
from rml_jax.stages.registry import (
    STAGES,
    background_key,
    parse_stage,
    register,
    split_stage,
    stage_needs,
)
from rml_jax.stages.sample_maps import make_sample_maps
from rml_jax.stages.stage import Stage
from tests.references.networks import SMALL_BACKBONE

SIZE, STRIDE = (16, 24), 4
GRID = (4, 6)
CONFIG = StagesConfig(
    stages=("cam", "affinity", "par", "affinity+crf"),
    scales=(1.0, 1.5),
    flip=True,
    stride=STRIDE,
    radius=2,
    pseudo_label=PseudoLabelConfig(high=0.4, low=0.2, slots=3, dilations=(1, 2), iterations=2),
    crf="afa",
)


def uniform(cells=24, batch=1):
    return np.ones((batch, cells, cells), np.float32)


def allow(*classes, count=2):
    allowed = np.zeros((1, count), bool)
    allowed[0, list(classes)] = True
    return allowed


def halves(left, right):
    """CAMs of two classes: one is `left` on the left half, the other `right` on the right half."""
    cams = np.zeros((1, *SIZE, 2), np.float32)
    cams[:, :, :12, 0] = left
    cams[:, :, 12:, 1] = right
    return cams


def mask_of(cams, affinity, classes, background=0.35, radius=0):
    """Stage `affinity` of images that fill the canvas."""
    config = dataclasses.replace(CONFIG, stages=("affinity",), radius=radius)
    batch, size = len(cams), cams.shape[1:3]
    maps = {"cams": jnp.asarray(cams), "affinity": affinity}
    slots = np.tile(np.arange(cams.shape[-1]), (batch, 1)), classes
    sizes = np.tile(np.array(size, np.int32), (batch, 1))
    images = np.zeros((*cams.shape[:3], 3), np.uint8)
    return np.asarray(
        make_refine(config)(maps, images, sizes, *slots, {"affinity": background})["masks"]["affinity"]
    )


def test_radius_0_keeps_the_best_class_of_every_cell():
    mask = mask_of(halves(0.9, 0.8), uniform(), allow(0, 1))
    assert (mask[:, :, :12] == 1).all()
    assert (mask[:, :, 12:] == 2).all()
    assert mask.dtype == np.uint8


def test_background_wins_where_the_scores_are_lower():
    cams = halves(0.9, 0.3)
    mask = mask_of(cams, uniform(), allow(0, 1), background=0.35)
    assert (mask[:, :, :8] == 1).all()
    assert (mask[:, :, 16:] == 0).all()
    assert (mask_of(cams, uniform(), allow(0, 1), background=0.95) == 0).all()
    assert (mask_of(cams, uniform(), allow(0, 1), background=0.0) > 0).all()


def test_class_that_is_not_allowed_never_appears():
    cams = halves(1.0, 1.0)
    for radius in (0, 2, 9):
        assert set(np.unique(mask_of(cams, uniform(), allow(1), radius=radius))) <= {0, 2}
    assert (mask_of(cams, uniform(), allow(1))[:, :, :8] == 0).all()
    assert (mask_of(cams, uniform(), allow()) == 0).all()


def test_class_that_is_not_allowed_takes_no_share():
    """Against the second class, the first would win everywhere; alone with the background, the second does."""
    cams = np.concatenate([np.full((1, *SIZE, 1), 1.0), np.full((1, *SIZE, 1), 0.5)], axis=-1)
    assert (mask_of(cams, uniform(), allow(0, 1), radius=3) == 1).all()
    assert (mask_of(cams, uniform(), allow(1), radius=3) == 2).all()


@pytest.fixture
def last_class():
    """CAMs of the last of 254 classes, on the left half; tags; an image and its size, less than the canvas."""
    cams = np.zeros((1, *SIZE, 254), np.float32)
    cams[:, :, :12, 253] = 1.0
    tags = np.zeros((1, 254), np.float32)
    tags[0, 253] = 1
    return cams, tags, np.zeros((1, *SIZE, 3), np.uint8), np.int32([[16, 20]])


def test_the_last_of_254_classes_in_masks_and_pseudo_labels(last_class):
    """Masks are uint8, where 255 means ignore."""
    cams, tags, images, sizes = last_class
    maps = {"cams": cams, "affinity": uniform()}
    slots = np.int32([[253]]), np.ones((1, 1), bool)
    config = dataclasses.replace(CONFIG, stages=("cam",))
    masks = make_refine(config)(maps, images, sizes, *slots, {"cam": 0.5})["masks"]
    expected = np.where(cams[..., 253] > 0, 254, 0)
    np.testing.assert_array_equal(masks["cam"], expected)
    labels = np.asarray(
        jax.jit(make_sample_maps(CONFIG))(cams, uniform(), images, sizes, tags)["pseudo_label"]
    )
    assert labels.dtype == masks["cam"].dtype == np.uint8
    np.testing.assert_array_equal(labels[:, :, :8], 254)
    np.testing.assert_array_equal(labels[:, :, 16:20], 0)
    np.testing.assert_array_equal(labels[:, :, 20:], 255)


def test_the_sweep_counts_class_254_and_leaves_255_out(last_class):
    cams, _, images, sizes = last_class
    annotations = np.full((1, *SIZE), 255, np.uint8)
    annotations[0, 0, :14], annotations[0, 1, :3] = 254, 0
    config = dataclasses.replace(CONFIG, stages=("cam",))
    found = make_sweep(config, 254)(
        cams[..., 253:], np.ones((1, 1), bool), uniform(), images, sizes, annotations, np.float32([0.5])
    )
    expected = np.zeros((255, 2))
    expected[254] = 2, 12  # the right half and the left one
    expected[0] = 0, 3
    np.testing.assert_array_equal(found["counts"]["cam"][0, 0], expected)


def test_uniform_affinity_averages_over_everything_in_reach():
    """The walk over the whole grid makes every cell the mean of all: the larger part wins everywhere."""
    cams = np.zeros((1, *SIZE, 2), np.float32)
    cams[:, :, :16, 0] = 1.0
    cams[:, :, 16:, 1] = 1.0
    assert (mask_of(cams, uniform(), allow(0, 1), radius=6) == 1).all()
    assert set(np.unique(mask_of(cams, uniform(), allow(0, 1), radius=0))) == {1, 2}


@pytest.mark.parametrize(("radius", "columns"), [(0, 1), (1, 2), (2, 3)])
def test_radius_limits_the_reach(radius, columns):
    """One hot column of cells makes foreground of its neighbours up to the radius.

    Against a background of 0.15 a hot cell has probability e / (e + e^0.15) = 0.70, a cold one 0.46. The mean
    over the up to five columns in reach stays above 0.5 with the hot one and falls to 0.46 without.
    """
    cams = np.zeros((1, *SIZE, 1), np.float32)
    cams[:, :, :4] = 1.0
    mask = mask_of(cams, uniform(), allow(0, count=1), background=0.15, radius=radius)
    centres = mask[0, :, [2, 6, 10, 14, 18, 22]]
    np.testing.assert_array_equal(centres, [[int(column < columns)] * 16 for column in range(6)])


def test_affinity_decides_who_is_averaged():
    """Cells of the two halves are strangers: a wide walk changes nothing, although one half is larger."""
    columns = np.arange(24) % 6
    side = columns < 4
    affinity = (side[:, None] == side[None, :]).astype(np.float32)[None]
    cams = np.zeros((1, *SIZE, 2), np.float32)
    cams[:, :, :16, 0] = 1.0
    cams[:, :, 16:, 1] = 1.0
    mask = mask_of(cams, affinity, allow(0, 1), radius=6)
    assert (mask[:, :, :16] == 1).all()
    assert (mask[:, :, 16:] == 2).all()


def test_image_that_is_no_multiple_of_the_stride():
    """The grid rounds up, as the network's does: 13 x 18 pixels are 4 x 5 cells."""
    cams = np.full((2, 13, 18, 1), 0.9, np.float32)
    mask = mask_of(cams, uniform(cells=20, batch=2), np.array([[True], [False]]), radius=2)
    assert mask.shape == (2, 13, 18)
    assert (mask[0] == 1).all()
    assert (mask[1] == 0).all()


# --- Names ---


@pytest.mark.parametrize(
    ("name", "refiners", "base", "behind"),
    [
        ("cam", (), "cam", ()),
        ("crf", ("crf",), "cam", ("crf",)),
        ("cam+crf", ("crf",), "cam", ("crf",)),
        ("cam+par", ("par",), "par", ()),
        ("affinity+crf", ("affinity", "crf"), "affinity", ("crf",)),
        ("affinity+par+crf", ("affinity", "par", "crf"), "affinity+par", ("crf",)),
        ("par+affinity", ("par", "affinity"), "par+affinity", ()),
        ("affinity+crf+par", ("affinity", "crf", "par"), "affinity", ("crf", "par")),
    ],
)
def test_names(name, refiners, base, behind):
    assert parse_stage(name) == refiners
    assert split_stage(name) == (base, behind)


@pytest.mark.parametrize("name", ["", "par+par", "crf+crf", "par+cam", "CRF", "affinity crf", "cam+"])
def test_what_is_no_stage(name):
    with pytest.raises(ValueError, match="is no stage: expected cam, or some of affinity, par, crf"):
        parse_stage(name)


@pytest.mark.parametrize(
    ("name", "key"), [("cam", "cam"), ("crf+par", "cam"), ("par+crf", "par"), ("affinity+par", "affinity")]
)
def test_background_enters_where_the_probabilities_are_made(name, key):
    assert background_key(name, {"cam", "affinity", "par"}) == key
    assert background_key(name, {"cam"}) == "cam", "what has no score of its own takes cam's"


def test_needs_are_those_of_all_stages_of_the_chain():
    assert stage_needs("cam") == set()
    assert stage_needs("crf+affinity") == {"images", "sizes", "affinity"}
    assert "affinity" not in stage_needs("par+crf")


@pytest.mark.parametrize(
    ("name", "needs", "words"),
    [("par", (), "'par'"), ("a+b", (), "'a\\+b'"), ("", (), "''"), ("deep", ("depth",), "needs 'depth'")],
)
def test_stages_that_cannot_be_registered(name, needs, words):
    stage = Stage()
    stage.name, stage.needs = name, needs
    with pytest.raises(ValueError, match=words):
        register(stage)
    assert list(STAGES) == ["cam", "affinity", "par", "crf"]


# --- Prediction: padded images of three sizes, and each image alone ---

SIZES = np.array([[16, 24], [9, 24], [13, 18]], np.int32)
TAGS = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]], np.float32)
BACKGROUNDS = {"cam": 0.6, "affinity": 0.2, "par": 0.3}


@pytest.fixture(scope="module")
def network(build):
    return nnx.split(build(lambda: RML(RMLConfig(SMALL_BACKBONE, num_classes=3), rngs=nnx.Rngs(0))))


@pytest.fixture(scope="module")
def images():
    """Canvases with rubbish beyond the images."""
    return np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def programs(network):
    graph, params = network
    run, refine = jax.jit(make_network(graph, CONFIG)), jax.jit(make_refine(CONFIG))
    crf = jax.jit(make_link(STAGES["crf"], CONFIG))

    def predict(images, sizes, tags):
        maps = run(params, images, sizes)
        slots = tagged_slots(tags, 3)
        soft = refine(maps, images, sizes, *slots, BACKGROUNDS)
        masks = dict(soft["masks"])
        inputs = {"images": images, "sizes": sizes}
        refined = crf(inputs, slots[0], soft["probabilities"]["affinity"])
        masks["affinity+crf"] = refined["masks"]
        return jax.device_get((maps, masks, soft["probabilities"]))

    return predict


@pytest.fixture(scope="module")
def prediction(programs, images):
    return programs(images, SIZES, TAGS)


def cut(maps, number):
    height, width = SIZES[number]
    return maps[number, :height, :width]


def test_what_lies_beyond_the_images_changes_not_one_bit(programs, images, prediction):
    black = images * np.asarray(inside(SIZES, SIZE))[..., None]
    assert (black != images).any()
    maps, masks, _ = programs(black.astype(np.uint8), SIZES, TAGS)
    for number in range(3):
        np.testing.assert_array_equal(maps["probabilities"][number], prediction[0]["probabilities"][number])
        np.testing.assert_array_equal(cut(maps["cams"], number), cut(prediction[0]["cams"], number))
        for stage, mask in masks.items():
            np.testing.assert_array_equal(cut(mask, number), cut(prediction[1][stage], number), err_msg=stage)


def test_padding_changes_no_prediction(programs, images, prediction):
    """A padded image gives what it gives alone on a canvas of its own size."""
    number = 2
    sizes, tags = SIZES[number : number + 1], TAGS[number : number + 1]
    maps, masks, _ = programs(cut(images, number)[None], sizes, tags)
    np.testing.assert_allclose(maps["probabilities"][0], prediction[0]["probabilities"][number], atol=1e-5)
    np.testing.assert_allclose(maps["cams"][0], cut(prediction[0]["cams"], number), atol=2e-5)
    for stage, mask in masks.items():
        np.testing.assert_array_equal(mask[0], cut(prediction[1][stage], number), err_msg=stage)


def test_cams_are_those_of_the_operator(network, images, prediction):
    model = nnx.merge(*network)
    image = jnp.asarray(images[:1])
    expected = multi_scale_cam(
        nnx.jit(type(model).classify).__get__(model),
        normalize(image),
        scales=(1.0, 1.5),
        flip=True,
        stride=STRIDE,
    )
    np.testing.assert_allclose(prediction[0]["cams"][:1], expected, atol=2e-5)


@pytest.mark.parametrize("stage", CONFIG.stages)
def test_masks_hold_only_what_is_allowed(prediction, stage):
    masks = prediction[1][stage]
    assert masks.dtype == np.uint8
    for number, tags in enumerate(TAGS):
        assert set(np.unique(cut(masks, number))) <= {0, *(1 + np.flatnonzero(tags)).tolist()}
    assert not cut(masks, 1).any(), "no tags, no foreground"
    assert cut(masks, 0).any(), "some foreground"


def test_cam_mask_is_the_cam_above_the_background(prediction):
    expected = np.asarray(cam_to_labels(jnp.asarray(prediction[0]["cams"]), TAGS, BACKGROUNDS["cam"]))
    for number in range(3):
        np.testing.assert_array_equal(cut(prediction[1]["cam"], number), cut(expected, number))


def test_par_mask_is_par_on_the_softmax(images, prediction):
    cams = jnp.asarray(prediction[0]["cams"][:1])
    soft = with_background(cams, TAGS[:1] > 0, BACKGROUNDS["par"])
    refined = par(images[:1].astype(np.float32), soft, dilations=(1, 2), iterations=2)
    np.testing.assert_array_equal(prediction[1]["par"][:1], refined.argmax(axis=-1))


def test_crf_is_that_of_the_image_alone(images, prediction):
    """The operator for one image on the probabilities of the stage before it."""
    stage = "affinity+crf"
    soft = cut(prediction[2]["affinity"], 0)
    marginals = dense_crf(cut(images, 0), soft / soft.sum(axis=-1, keepdims=True), "afa")
    classes = np.array([0, *(1 + np.asarray(tagged_slots(TAGS, 3)[0][0]))])
    np.testing.assert_array_equal(cut(prediction[1][stage], 0), classes[marginals.argmax(axis=-1)])


def test_sample_maps_follow_the_given_tags(images, prediction):
    shown = jax.jit(make_sample_maps(CONFIG))(
        prediction[0]["cams"], prediction[0]["affinity"], images, SIZES, TAGS
    )
    for number, tags in enumerate(TAGS):
        labels = np.asarray(shown["pseudo_label"][number])
        assert set(np.unique(labels)) <= {0, 255, *(1 + np.flatnonzero(tags)).tolist()}
        assert (labels[~np.asarray(inside(SIZES, SIZE))[number]] == 255).all(), "nothing is known beyond"
    assert not np.asarray(shown["cam"])[1].any()
    assert np.asarray(shown["cam"])[0].max() == pytest.approx(1, abs=1e-2)


def test_affinity_is_that_of_the_strongest_pixel_s_cell(images, prediction):
    maps = prediction[0]
    shown = jax.jit(make_sample_maps(CONFIG))(maps["cams"], maps["affinity"], images, SIZES, TAGS)
    stride, columns = CONFIG.stride, -(-SIZE[1] // CONFIG.stride)
    for number, (row, column) in enumerate(np.asarray(shown["pixel"])):
        cam = np.asarray(shown["cam"])[number]
        assert cam[row, column] == cam.max()
        cell = row // stride * columns + column // stride
        found = np.asarray(shown["affinity"])[number]
        np.testing.assert_array_equal(found.ravel(), np.asarray(maps["affinity"])[number, cell])
        assert found.shape[1] == columns
