"""Pixel-adaptive refinement (PAR), from AFA (Ru et al. 2022)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from rml_jax.ops.region import replicate_edges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Array, Float, Int, Num

DILATIONS = (1, 2, 4, 8, 12, 24)
"""Distances to the neighbours in pixels, as published."""

ITERATIONS = 10

_DIRECTIONS = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
_SHARPNESS = 0.3
_POSITION_WEIGHT = 0.01


def par(
    images: Num[Array, "b h w 3"],
    masks: Float[Array, "b h w k"],
    *,
    dilations: Sequence[int] = DILATIONS,
    iterations: int = ITERATIONS,
    sizes: Int[Array, "b 2"] | None = None,
) -> Float[Array, "b h w k"]:
    """Refines soft masks by the colours of the image (docs/method.md, Pseudo labels).

    Every iteration replaces each pixel's values by a weighted sum over its neighbours: eight at each dilation, with
    replicated edges. The weights are a softmax of colour similarity plus 0.01 times a softmax of proximity. They sum
    to 1.01, so a constant mask grows by that factor in each iteration.

    Args:
      images: float [B, H, W, 3], colours in 0..255.
      masks: float [B, H, W, K].
      dilations: distances to the neighbours, in pixels.
      iterations: number of iterations.
      sizes: int32 [B, 2], true height and width of the images in the top left corner of the canvas; None if they
        fill it.

    Returns:
      float32 [B, H, W, K], undefined outside the images.
    """
    images = replicate_edges(images, sizes)
    weights = par_weights(images, dilations)
    # Channels first, so that the innermost loop runs along a row of pixels rather than along a few classes.
    masks = jnp.moveaxis(masks.astype(jnp.float32), -1, 1)

    def refine(masks, _):
        masks = replicate_edges(masks, sizes, axes=(2, 3))
        neighbours_sum = jax.lax.platform_dependent(
            weights,
            masks,
            cpu=functools.partial(_weighted_sum, dilations=dilations),
            default=functools.partial(_weighted_sum_by_dilation, dilations=dilations),
        )
        return neighbours_sum, None

    masks, _ = jax.lax.scan(refine, masks, length=iterations)
    return jnp.moveaxis(masks, 1, -1)


def par_weights(
    images: Num[Array, "b h w 3"], dilations: Sequence[int] = DILATIONS
) -> Float[Array, "n b h w"]:
    """Computes the refinement weights of PAR.

    Args:
      images: float [B, H, W, 3], colours in 0..255.
      dilations: distances to the neighbours, in pixels.

    Returns:
      float32 [8 * len(dilations), B, H, W], one weight per neighbour; they sum to 1.01.
    """
    colours = jnp.moveaxis(images.astype(jnp.float32), -1, 1)
    neighbours = jnp.stack(_neighbours(colours, dilations))
    deviation = jnp.std(neighbours, axis=0, ddof=1)
    likeness = -jnp.mean(jnp.square((neighbours - colours) / (deviation + 1e-8) / _SHARPNESS), axis=2)
    return jax.nn.softmax(likeness, axis=0) + _position_weights(dilations)[:, None, None, None]


def _weighted_sum(weights, masks, dilations):
    """Computes the weighted sum over the neighbours: [n, B, H, W], [B, K, H, W] -> [B, K, H, W]."""
    neighbours = _neighbours(masks, dilations)
    terms = (weight[:, None] * n for weight, n in zip(weights, neighbours, strict=True))
    return functools.reduce(jnp.add, terms)


def _weighted_sum_by_dilation(weights, masks, dilations):
    """Computes `_weighted_sum` in a loop over the dilations, for GPUs and TPUs.

    A TPU's compiler writes shifted maps to memory if one expression holds all 48, and fuses those of three dilations
    (docs/accelerators.md, PAR). The terms are added in the same order.
    """
    starts = jnp.asarray(_starts(dilations)).reshape(len(dilations), len(_DIRECTIONS), 2)
    padded = _pad_edges(masks, dilations)

    def add(total, step):
        for weight, (top, left) in zip(*step, strict=True):
            total += weight[:, None] * jax.lax.dynamic_slice(padded, (0, 0, top, left), masks.shape)
        return total, None

    grouped = weights.reshape(len(dilations), len(_DIRECTIONS), *weights.shape[1:])
    return jax.lax.scan(add, jnp.zeros_like(masks), (grouped, starts), unroll=3)[0]


def _position_weights(dilations):
    distances = np.array([d * np.hypot(i, j) for d in dilations for i, j in _DIRECTIONS])
    nearness = -np.square(distances / (distances.std(ddof=1) + 1e-8) / _SHARPNESS)
    weights = np.exp(nearness - nearness.max())
    return jnp.asarray(_POSITION_WEIGHT * weights / weights.sum(), jnp.float32)


def _neighbours(maps, dilations):
    """Shifts maps [B, K, H, W] to each neighbour, with replicated edges: a list of 8 per dilation."""
    height, width = maps.shape[2:]
    padded = _pad_edges(maps, dilations)
    return [padded[:, :, top : top + height, left : left + width] for top, left in _starts(dilations)]


def _pad_edges(maps, dilations):
    margin = max(dilations)
    return jnp.pad(maps, ((0, 0), (0, 0), (margin, margin), (margin, margin)), mode="edge")


def _starts(dilations):
    """Returns the first row and column of each neighbour's map in the padded one."""
    margin = max(dilations)
    return [(margin + d * i, margin + d * j) for d in dilations for i, j in _DIRECTIONS]
