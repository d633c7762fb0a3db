"""Stage `affinity`: one step of a random walk along the network's affinity map."""

import jax.numpy as jnp

from rml_jax.ops.affinity import random_walk
from rml_jax.ops.cam import with_background
from rml_jax.ops.grid import ceil_div
from rml_jax.ops.region import inside, resize_inside
from rml_jax.stages.stage import Stage


class Affinity(Stage):
    """Propagates scores on the network's grid."""

    name = "affinity"
    needs = ("affinity", "sizes")

    def apply(self, probabilities, config, affinity, sizes):
        scores = _on_grid(probabilities, sizes, config.stride)
        return _walk(scores, probabilities.shape[1:3], affinity, sizes, config)

    def from_cams(self, cams, used, background, config, affinity, sizes):
        # Unlike in `apply`, the softmax follows the resize.
        scores = with_background(_on_grid(cams, sizes, config.stride), used, background)
        return _walk(scores, cams.shape[1:3], affinity, sizes, config)


def _on_grid(maps, sizes, stride):
    grid = tuple(ceil_div(side, stride) for side in maps.shape[1:3])
    return resize_inside(maps, sizes, grid, ceil_div(sizes, stride))


def _walk(scores, canvas, affinity, sizes, config):
    """Propagates scores [B, h, w, K] on the grid and resizes them to the canvas."""
    grid_sizes = ceil_div(sizes, config.stride)
    # No step starts outside the image.
    real = inside(grid_sizes, scores.shape[1:3]).reshape(len(scores), -1, 1)
    walked = random_walk(scores, jnp.where(real, affinity, 0), config.radius)
    return resize_inside(walked, grid_sizes, canvas, sizes)
