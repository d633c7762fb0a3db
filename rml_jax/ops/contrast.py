"""The contrast of a mask with the image, and the background's score by it (docs/method.md, Region contrast)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Num

STEP = 0.1
"""Distance between the background scores that are tried."""
OFFSETS = tuple(round(STEP * step, 1) for step in range(-3, 4))
"""The scores that are tried, from the score that they are to stay close to."""
_SAME = 1e-3

_FLAT = 1e-3
"""Least deviation and distance of colours, of the range 0..1: rounding errors of an even image are no contrast."""


def choose_score(
    contrast: Float[Array, "... t"],
    scores: Float[Array, "*#... t"],
    near: Float[Array, "*#..."],
    weight: float,
) -> tuple[Float[Array, ...], Int[Array, ...]]:
    """Chooses the background score whose mask has the most contrast with the image, near a given score.

    The choice maximises `weight * contrast - ((score - near) / STEP)**2 / 2`. Scores that are not between 0 and 1 are
    not chosen, `near` itself excepted.

    Args:
      contrast: float [..., T], see `region_contrast`, of the mask at each score.
      scores: float [..., T] or [T], the scores.
      near: float [...] or a scalar, the score to stay close to.
      weight: of the contrast, at least 0.

    Returns:
      value: float32 [...], the maximum.
      place: int32 [...], the index of the chosen score; the first of equals.
    """
    steps = (scores - jnp.expand_dims(near, -1)) / STEP
    allowed = ((scores > 0) & (scores < 1)) | (jnp.abs(steps) < _SAME)
    values = jnp.where(allowed, weight * contrast - 0.5 * steps**2, -jnp.inf)
    return values.max(axis=-1), values.argmax(axis=-1)


def region_contrast(
    masks: Int[Array, "t b h w"],
    images: Num[Array, "b h w 3"],
    real: Bool[Array, "b h w"],
    num_regions: int,
) -> Float[Array, "t b"]:
    """Computes how well masks follow the colours of an image, from the image alone.

    It is the product of two shares. The first is the share of the colours' variance that the regions' mean colours
    explain, Otsu's criterion (1979) for the classes of a mask. The second is the mean over the mask's contour of
    d / (d + m): d is the distance in colour of the two neighbours that the contour separates, in the image smoothed
    over 3x3 pixels, m is the mean distance of all neighbours of the image.

    Args:
      masks: int [T, B, H, W], T masks of each image, with values below `num_regions`.
      images: [B, H, W, 3], colours in 0..255.
      real: bool [B, H, W], the pixels that take part.
      num_regions: number of values in a mask, background included.

    Returns:
      float32 [T, B] in [0, 1]. 0 for a mask of one region and for an image of one colour.
    """
    colours = images.astype(jnp.float32) / 255
    explained = functools.partial(_explained, *_moments(colours, real), num_regions=num_regions)
    distances = _neighbour_distances(_smooth(colours, real), real)

    def of_one(masks):
        return explained(masks) * _on_contour(masks, distances)

    return jax.lax.map(of_one, masks)


def _moments(colours, real):
    """Returns [1, colours] about their mean, 0 outside, float32 [B, H, W, 4], and the sum of squares [B]."""
    weight = real[..., None].astype(jnp.float32)
    mean = (colours * weight).sum((1, 2), keepdims=True) / jnp.maximum(weight.sum((1, 2), keepdims=True), 1)
    centred = (colours - mean) * weight
    total = jnp.maximum(jnp.square(centred).sum((1, 2, 3)), _FLAT**2 * weight.sum((1, 2, 3)))
    return jnp.concatenate([weight, centred], axis=-1), total


def _explained(moments, total, masks, num_regions):
    """Computes the share of the colours' variance between the regions, float32 [B]."""
    in_region = jax.nn.one_hot(masks, num_regions)
    count, sums = jnp.split(
        jnp.einsum("bhwk,bhwc->bkc", in_region, moments, precision="highest"), (1,), axis=-1
    )
    between = (jnp.square(sums) / jnp.maximum(count, 1)).sum((1, 2))
    return between / total


def _smooth(colours, real):
    """Returns the mean over the real ones of the 3x3 pixels around each, float32 [B, H, W, 3]."""
    weight = real[..., None].astype(jnp.float32)

    def around(x):
        for axis in (1, 2):
            padded = jnp.pad(x, [(1, 1) if other == axis else (0, 0) for other in range(x.ndim)])
            length = x.shape[axis]
            x = sum(jax.lax.slice_in_dim(padded, start, start + length, axis=axis) for start in range(3))
        return x

    return around(colours * weight) / jnp.maximum(around(weight), 1)


def _neighbour_distances(colours, real):
    """Returns, along both axes, which neighbours are both real, and d / (d + m) of their distance in colour."""
    pairs = []
    for axis in (1, 2):
        (first, second), (a, b) = _neighbours(real, axis), _neighbours(colours, axis)
        pairs.append((first & second, jnp.sqrt(jnp.square(a - b).sum(axis=-1))))
    count = sum(both.sum((1, 2)) for both, _ in pairs)
    mean = sum((distance * both).sum((1, 2)) for both, distance in pairs) / jnp.maximum(count, 1)
    mean = jnp.maximum(mean, _FLAT)[:, None, None]
    return [(both, distance / (distance + mean)) for both, distance in pairs]


def _on_contour(masks, distances):
    """Computes the mean of `_neighbour_distances` over the neighbours of different regions, float32 [B]."""
    count, total = 0, 0
    for axis, (both, relative) in enumerate(distances, 1):
        first, second = _neighbours(masks, axis)
        contour = both & (first != second)
        count, total = count + contour.sum((1, 2)), total + (relative * contour).sum((1, 2))
    return total / jnp.maximum(count, 1)


def _neighbours(x, axis):
    """Returns all elements but the last along an axis, and all but the first: neighbours at the same index."""
    length = x.shape[axis]
    return jax.lax.slice_in_dim(x, 0, length - 1, axis=axis), jax.lax.slice_in_dim(x, 1, length, axis=axis)
