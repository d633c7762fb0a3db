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
    weights = par_weights(replicate_edges(images, sizes), dilations)
    iterate = functools.partial(_iterate, dilations=dilations, iterations=iterations)
    # On a CPU, a row's weights stay in the cache for the rows of all classes.
    return jax.lax.platform_dependent(
        weights,
        masks.astype(jnp.float32),
        sizes,
        cpu=functools.partial(iterate, weighted_sum=_weighted_sum, classes_axis=2),
        default=functools.partial(iterate, weighted_sum=_weighted_sum_by_dilation, classes_axis=1),
    )


def _iterate(weights, masks, sizes, *, weighted_sum, classes_axis, dilations, iterations):
    masks = jnp.moveaxis(masks, -1, classes_axis)
    rows_and_columns = (3 - classes_axis, 3)

    def refine(masks, _):
        padded = replicate_edges(masks, sizes, rows_and_columns, margin=max(dilations))
        return weighted_sum(weights, padded, dilations), None

    masks, _ = jax.lax.scan(refine, masks, length=iterations)
    return jnp.moveaxis(masks, classes_axis, -1)


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
    padded = replicate_edges(colours, None, axes=(2, 3), margin=max(dilations))
    starts = _starts(dilations)

    def neighbour(start):
        return jax.lax.dynamic_slice(padded, (0, 0, *start), colours.shape)

    def dissimilarity(least, start):
        squares = jnp.square((neighbour(start) - colours) * sharpness)
        distance = _total(jnp.unstack(squares, axis=1)) / 3
        return jnp.minimum(least, distance), distance

    # Sums in loops: XLA's CPU backend takes 40 times as long for a reduction over a leading axis.
    neighbours = [neighbour(start) for start in starts]
    mean = _total(neighbours) / len(starts)
    variance = _total([jnp.square(n - mean) for n in neighbours]) / (len(starts) - 1)
    sharpness = 1 / ((jnp.sqrt(variance) + 1e-8) * _SHARPNESS)
    least = jnp.full(colours[:, 0].shape, jnp.inf)
    least, distances = jax.lax.scan(dissimilarity, least, jnp.asarray(starts), unroll=8)
    likeness = jnp.exp(least - distances)
    total = _total([jnp.exp(least - distance) for distance in distances])
    return likeness / total + _position_weights(dilations)[:, None, None, None]


def _weighted_sum(weights, padded, dilations):
    """Computes the weighted sum over the neighbours: [n, B, H, W], padded [B, H', K, W'] -> [B, H, K, W]."""
    height, width = weights.shape[2:]
    return _total(
        weight[:, :, None] * padded[:, top : top + height, :, left : left + width]
        for weight, (top, left) in zip(weights, _starts(dilations), strict=True)
    )


def _weighted_sum_by_dilation(weights, padded, dilations):
    """Computes `_weighted_sum` of padded [B, K, H', W'] in a loop over the dilations, for GPUs and TPUs.

    A TPU's compiler writes shifted maps to memory if one expression holds all 48, and fuses those of three dilations
    (docs/accelerators.md, PAR). The terms are added in the same order.
    """
    shape = (*padded.shape[:2], *weights.shape[2:])
    starts = jnp.asarray(_starts(dilations)).reshape(len(dilations), len(_DIRECTIONS), 2)

    def add(total, step):
        for weight, (top, left) in zip(*step, strict=True):
            total += weight[:, None] * jax.lax.dynamic_slice(padded, (0, 0, top, left), shape)
        return total, None

    grouped = weights.reshape(len(dilations), len(_DIRECTIONS), *weights.shape[1:])
    return jax.lax.scan(add, jnp.zeros(shape, padded.dtype), (grouped, starts), unroll=3)[0]


def _total(terms):
    return functools.reduce(jnp.add, terms)


def _position_weights(dilations):
    distances = np.array([d * np.hypot(i, j) for d in dilations for i, j in _DIRECTIONS])
    nearness = -np.square(distances / (distances.std(ddof=1) + 1e-8) / _SHARPNESS)
    weights = np.exp(nearness - nearness.max())
    return jnp.asarray(_POSITION_WEIGHT * weights / weights.sum(), jnp.float32)


def _starts(dilations):
    """Returns the first row and column of each neighbour's map in the padded one."""
    margin = max(dilations)
    return [(margin + d * i, margin + d * j) for d in dilations for i, j in _DIRECTIONS]
