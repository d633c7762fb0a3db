"""The stages of inference: the random walk by hand, and prediction against its parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.parity.networks import SMALL_BACKBONE
from rml_jax.evaluation.stages import StagesConfig, affinity_mask, make_predict
from rml_jax.models import RML, RMLConfig
from rml_jax.ops.pseudo_label import PseudoLabelConfig

SIZE, STRIDE = (16, 24), 4
GRID = (4, 6)


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
    return np.asarray(affinity_mask(jnp.asarray(cams), affinity, classes, background, STRIDE, radius))


def test_radius_0_keeps_the_best_class_of_every_cell():
    mask = mask_of(halves(0.9, 0.8), uniform(), allow(0, 1))
    assert (mask[:, :, :12] == 1).all()
    assert (mask[:, :, 12:] == 2).all()
    assert mask.dtype == np.int32


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


def test_picture_that_is_no_multiple_of_the_stride():
    """The grid rounds up, as the network's does: 13 x 18 pixels are 4 x 5 cells."""
    cams = np.full((2, 13, 18, 1), 0.9, np.float32)
    mask = mask_of(cams, uniform(cells=20, batch=2), np.array([[True], [False]]), radius=2)
    assert mask.shape == (2, 13, 18)
    assert (mask[0] == 1).all()
    assert (mask[1] == 0).all()


# --- Prediction ---

CONFIG = StagesConfig(
    stages=("cam", "affinity", "par"),
    background={"cam": 0.6, "affinity": 0.2, "par": 0.3},
    scales=(1.0, 1.5),
    flip=True,
    stride=STRIDE,
    radius=2,
    pseudo_label=PseudoLabelConfig(high=0.4, low=0.2, slots=3, dilations=(1, 2), iterations=2),
)
TAGS = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]], np.float32)


@pytest.fixture(scope="module")
def prediction(build):
    graph, params = nnx.split(build(lambda: RML(RMLConfig(SMALL_BACKBONE, num_classes=3), rngs=nnx.Rngs(0))))
    images = np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3)).astype(np.uint8)
    return jax.tree.map(np.asarray, jax.jit(make_predict(graph, CONFIG))(params, images, TAGS))


def test_prediction_has_every_stage_of_both_protocols(prediction):
    assert prediction["masks"].keys() == {"predicted", "given"}
    for masks in prediction["masks"].values():
        assert masks.keys() == {"cam", "affinity", "par"}
        assert {(mask.shape, str(mask.dtype)) for mask in masks.values()} == {((3, *SIZE), "uint8")}
    assert prediction["cam"].shape == (3, *SIZE)
    assert prediction["cam"].min() >= 0
    assert prediction["cam"].max() <= 1
    assert prediction["pseudo_label"].shape == (3, *SIZE)
    assert ((prediction["probabilities"] > 0) & (prediction["probabilities"] < 1)).all()


@pytest.mark.parametrize("stage", CONFIG.stages)
def test_masks_hold_only_what_the_protocol_allows(prediction, stage):
    allowed = {"given": TAGS > 0, "predicted": prediction["probabilities"] > 0.5}
    assert (allowed["given"] != allowed["predicted"]).any(), "the test needs protocols that differ"
    seen = {}
    for protocol, tags in allowed.items():
        masks = prediction["masks"][protocol][stage]
        for mask, classes in zip(masks, tags, strict=True):
            assert set(np.unique(mask)) <= {0, *(1 + np.flatnonzero(classes)).tolist()}
        seen[protocol] = set(np.unique(masks)) - {0}
    assert (prediction["masks"]["given"][stage][1] == 0).all(), "no tags, no foreground"
    assert seen["given"], "some foreground"


def test_pseudo_labels_and_cam_follow_the_given_tags(prediction):
    for labels, tags in zip(prediction["pseudo_label"], TAGS, strict=True):
        assert set(np.unique(labels)) <= {0, 255, *(1 + np.flatnonzero(tags)).tolist()}
    assert (prediction["cam"][1] == 0).all()
    assert (prediction["pseudo_label"][1] == 0).all()
    assert prediction["cam"][0].max() == pytest.approx(1, abs=1e-2)


def test_cam_mask_is_the_cam_above_the_background(prediction):
    """With the given tags, what is foreground follows from the strongest tagged map alone."""
    foreground = prediction["masks"]["given"]["cam"] > 0
    np.testing.assert_array_equal(foreground, prediction["cam"] > 0.6)
    assert 0.05 < foreground[0].mean() < 0.95
