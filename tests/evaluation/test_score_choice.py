"""The background's score by the contrast of masks with the images: one for each image, and one for a data set."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rml_jax.config import default_config, load_config, save_config
from rml_jax.evaluation.evaluator import Evaluator
from rml_jax.evaluation.metrics import confusion_matrix, mean_iou
from rml_jax.evaluation.sweep import CRITERIA
from rml_jax.models import build as build_module
from rml_jax.ops.contrast import OFFSETS, STEP, region_contrast
from rml_jax.stages.config import stages_config
from rml_jax.stages.refine import _base_at_chosen_scores, make_refine
from rml_jax.validate import check_config
from tests.evaluation.test_evaluator import Source, make_config

GRID = (0.1, 0.35, 0.6, 0.9)
WEIGHT = 3000.0  # The images are noise, with which no mask has much contrast.
BASES = ("cam", "par")


def configured(**settings):
    config = make_config(3, BASES)
    config.eval.protocols = ("given",)
    config.eval.update(settings)
    return config


@pytest.fixture(scope="module")
def network(build):
    return nnx.split(build(lambda: build_module.build_model(make_config(1), seed=0)))


def source_of(items):
    source = Source()
    source.items = items
    return source


def images():
    """Images that fit on a canvas; of others, contrasts are computed at the canvas's resolution."""
    return Source().items[:3]


def masks_of(network, config, score):
    """The masks that prediction gives with one background score: (base, id) -> uint8 [H, W]."""
    saved = {}

    def save(protocol, stage, image_id, mask):
        saved[stage, image_id] = mask

    unmasked = [{key: value for key, value in item.items() if key != "mask"} for item in images()]
    backgrounds = {"given": dict.fromkeys(BASES, score)}
    Evaluator(config, network[0]).evaluate(
        network[1], source_of(unmasked), backgrounds, lambda done: None, save
    )
    return saved


def sweep(network, config, items):
    evaluator = Evaluator(config, network[0])
    return evaluator.sweep(network[1], source_of(items), range(len(items)), GRID, lambda done: None)["given"]


def contrast_of(mask, image):
    real = np.ones((1, *mask.shape), bool)
    return float(region_contrast(jnp.asarray(mask)[None, None], image[None], real, 4)[0, 0])


@pytest.fixture(scope="module")
def masks(network):
    """The masks at every score that may be chosen near one of the grid: score -> (base, id) -> mask."""
    scores = {round(score + offset, 2) for score in GRID for offset in OFFSETS}
    return {score: masks_of(network, configured(), score) for score in sorted(scores) if 0 < score < 1}


@pytest.fixture(scope="module")
def chosen(masks):
    """The mask with the most contrast near each score of the grid: (score, base, id) -> mask."""
    result = {}
    for near in GRID:
        for base in BASES:
            for item in images():
                values = {
                    score: WEIGHT * contrast_of(found[base, item["id"]], item["image"])
                    - 0.5 * ((score - near) / STEP) ** 2
                    for score, found in masks.items()
                    if round(score - near, 2) in OFFSETS
                }
                result[near, base, item["id"]] = masks[max(values, key=values.get)][base, item["id"]]
    return result


def test_prediction_chooses_the_mask_with_the_most_contrast(network, masks, chosen):
    config, differ = configured(region_contrast=WEIGHT), 0
    for near in GRID:
        for (base, image_id), mask in masks_of(network, config, near).items():
            np.testing.assert_array_equal(mask, chosen[near, base, image_id])
            differ += (mask != masks[near][base, image_id]).any()
    assert differ > len(GRID)  # The choice matters here.


def test_the_sweep_scores_the_masks_that_prediction_chooses(network, chosen):
    curves = sweep(network, configured(region_contrast=WEIGHT), images())
    for base in BASES:
        expected = [
            mean_iou(
                sum(confusion_matrix(chosen[near, base, item["id"]], item["mask"], 4) for item in images())
            )
            for near in GRID
        ]
        np.testing.assert_allclose(curves[base], expected)


def test_without_masks_the_mean_contrast_is_swept(network, masks):
    config = configured()
    config.eval.sweep.criterion = "contrast"
    unmasked = [{key: value for key, value in item.items() if key != "mask"} for item in images()]
    curves = sweep(network, config, unmasked)
    assert list(curves) == ["par"]
    for score, value in zip(GRID, curves["par"], strict=True):
        each = [contrast_of(masks[score]["par", item["id"]], item["image"]) for item in images()]
        assert value == pytest.approx(np.mean(each), rel=1e-4)


def test_parts_of_the_scores_give_the_same_choice():
    config, rng = default_config(), np.random.default_rng(0)
    config.eval.stages = ("par",)
    stages = dataclasses.replace(stages_config(config), region_contrast=WEIGHT)
    cams, used = rng.random((2, 20, 24, 2), np.float32), np.ones((2, 2), bool)
    inputs = {
        "images": rng.integers(0, 256, (2, 20, 24, 3), np.uint8),
        "sizes": np.int32([[20, 24], [17, 20]]),
        "affinity": np.zeros((2, 1, 1), np.float32),
    }
    near = jnp.float32([0.3, 0.5])
    whole, parts = (
        jax.jit(
            lambda at_once=at_once: _base_at_chosen_scores("par", cams, used, near, inputs, stages, at_once)
        )()
        for at_once in (2**25, 1)
    )
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    refine = jax.jit(make_refine(stages))
    maps = {"cams": cams, "affinity": inputs["affinity"]}
    classes = np.tile(np.int32([[0, 1]]), (2, 1))
    found = refine(maps, inputs["images"], inputs["sizes"], classes, used, {"par": near})
    np.testing.assert_allclose(found["backgrounds"]["par"], whole[1])
    fixed = refine(
        maps, inputs["images"], inputs["sizes"], classes, used, {"par": found["backgrounds"]["par"]}
    )
    assert set(fixed) == {"masks", "probabilities", "backgrounds"}


def test_every_criterion_may_be_configured():
    for name in CRITERIA:
        config = make_config(1)
        config.eval.sweep.criterion = name
        check_config(config, reads_data=False)


def test_runs_with_the_old_criterion_can_be_read(tmp_path):
    config = default_config()
    config.eval.sweep.criterion = "agreement"
    save_config(config, tmp_path / "config.json")
    assert load_config(tmp_path / "config.json").eval.sweep.criterion == "contrast"
