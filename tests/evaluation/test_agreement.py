"""The choice of background scores without masks: by the agreement of an image with its mirror image."""

import numpy as np
import pytest
from flax import nnx

from rml_jax.evaluation.evaluator import Evaluator
from rml_jax.evaluation.metrics import AREA_EXPONENT, agreement
from rml_jax.evaluation.sweep import CRITERIA
from rml_jax.models import build as build_module
from rml_jax.validate import check_config
from tests.evaluation.test_evaluator import Source, make_config

GRID = (0.1, 0.4, 0.7, 9.0)


@pytest.fixture(scope="module")
def network(build):
    return nnx.split(build(lambda: build_module.build_model(make_config(1), seed=0)))


@pytest.fixture(scope="module")
def evaluator(network):
    config = make_config(3, ("cam", "par"))
    config.eval.protocols = ("given",)
    return Evaluator(config, network[0])


@pytest.fixture(scope="module")
def curves(network, evaluator):
    source = without_masks(images())
    return evaluator.sweep(
        network[1], source, range(len(source)), GRID, lambda done: None, criterion="agreement"
    )["given"]


def images():
    """Images that fit on a canvas; of others, masks are compared at the canvas's resolution."""
    return Source().items[:3]


def without_masks(items):
    source = Source()
    source.items = [{key: value for key, value in item.items() if key != "mask"} for item in items]
    return source


def masks_of(evaluator, params, items, score):
    """The masks that prediction gives with one background score: (base, id) -> uint8 [H, W]."""
    saved = {}

    def save(protocol, stage, image_id, mask):
        saved[stage, image_id] = mask

    backgrounds = {"given": dict.fromkeys(("cam", "par"), score)}
    evaluator.evaluate(params, without_masks(items), backgrounds, lambda done: None, save)
    return saved


def test_agreement_by_hand():
    """Of 100 pixels 80 are background in both, 10 foreground in both; 5 and 5 differ. Classes do not matter."""
    matrix = np.array([[80, 5, 0], [3, 6, 1], [2, 1, 2]])
    chance = 0.85**2 + 0.15**2
    assert agreement(matrix) == pytest.approx((0.9 - chance) / (1 - chance) * 0.85**AREA_EXPONENT)


def test_agreement_is_nothing_without_foreground_or_background():
    assert agreement(np.diag([9, 0])) == agreement(np.diag([0, 9])) == 0
    assert agreement(np.array([[9, 1], [0, 0]])) == 0
    assert agreement(np.zeros((3, 3), int)) == 0


def test_a_large_foreground_counts_less_than_a_small_one():
    assert agreement(np.diag([20, 80])) < agreement(np.diag([80, 20])) < agreement(np.diag([90, 10])) < 1


def test_curves_compare_the_masks_of_images_with_those_of_their_mirror_images(network, evaluator, curves):
    mirrored = [item | {"image": item["image"][:, ::-1]} for item in images()]
    for number, score in enumerate(GRID):
        firsts, seconds = (masks_of(evaluator, network[1], items, score) for items in (images(), mirrored))
        for base, values in curves.items():
            matrix = np.zeros((4, 4), int)
            for item in images():
                np.add.at(matrix, (firsts[base, item["id"]], seconds[base, item["id"]][:, ::-1]), 1)
            assert values[number] == agreement(matrix)


def test_masks_of_background_alone_are_worth_nothing(curves):
    assert list(curves) == ["cam"]
    assert curves["cam"][-1] == 0
    assert 0.1 < max(curves["cam"]) < 1


def test_every_criterion_may_be_configured():
    for name in CRITERIA:
        config = make_config(1)
        config.eval.sweep.criterion = name
        check_config(config, reads_data=False)
