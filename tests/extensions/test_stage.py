"""A refinement stage that is added from outside the package."""

import jax.numpy as jnp
import numpy as np
import pytest

from rml_jax.evaluation.evaluator import Evaluator
from rml_jax.inference.predictor import predictor_of
from rml_jax.models import build
from rml_jax.ops.region import replicate_edges
from rml_jax.stages.registry import STAGES, register
from rml_jax.stages.stage import Stage


class Mean(Stage):
    """Replaces every pixel's probabilities by their mean over 3x3 pixels."""

    name = "mean"
    needs = ("sizes",)

    def apply(self, probabilities, config, sizes):
        height, width = probabilities.shape[1:3]
        padded = jnp.pad(replicate_edges(probabilities, sizes), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        return sum(padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)) / 9


@pytest.fixture
def config(network):
    register(Mean())
    yield network[0].copy_and_resolve_references()
    del STAGES["mean"]


def smoothed(maps):
    padded = np.pad(maps, ((1, 1), (1, 1), (0, 0)), "edge")
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (0, 1)).mean(axis=(-2, -1))


def test_stage_behind_the_crf(network, config, noise):
    image, params = noise(20, 44), network[1]
    before, after = (
        predictor_of(config, params, stage=stage)(image, tags=["ant", "cow"]) for stage in ("crf", "crf+mean")
    )
    np.testing.assert_allclose(after.probabilities, smoothed(before.probabilities), atol=1e-5)
    np.testing.assert_array_equal(after.mask, np.array([0, 1, 3])[after.probabilities.argmax(axis=-1)])

    config.eval.stages = ("crf+mean", "mean")  # The latter takes the background's score of `cam`.
    evaluator, masks = Evaluator(config, build.build_graph(config)[0]), {}
    item = {"id": "a", "image": image, "mask": np.zeros((20, 44), np.uint8), "tags": np.array([1.0, 0, 1])}

    def save(protocol, stage, _, mask):
        masks[protocol, stage] = mask

    evaluator.evaluate(params, [item], evaluator.fixed_backgrounds(), lambda done: None, save)
    np.testing.assert_array_equal(masks["given", "crf+mean"], after.mask)
    assert masks["given", "mean"].shape == (20, 44)
