"""The random affine transform A between the two views, applied to images, maps, labels and pairs.

A transform is a 2x3 matrix theta per image that takes a position in the *transformed* image to one in the original,
in coordinates (x, y) from -1 to 1 between the outer edges of the image: the convention of torch's `affine_grid` and
`grid_sample` with `align_corners=False`. These coordinates are relative, so the same theta acts on the image and on
its maps at any resolution. Source: docs/method.md, The pair of views.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from rml_jax.labels import IGNORE

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

# Bilinear weights of positions inside sum to 1 up to rounding.
_INSIDE = 1.0 - 1e-4


@dataclasses.dataclass(frozen=True)
class AffineRange:
    """Ranges of A's parameters, each drawn uniformly and independently (docs/method.md, The pair of views).

    Attributes:
      scale: least and greatest size of the content, 1 = unchanged.
      rotation: greatest angle either way, in degrees. Angles are true on square canvases.
      translation: greatest shift either way, as a fraction of the side.
      flip: probability of a horizontal flip.
    """

    scale: tuple[float, float] = (0.5, 1.0)
    rotation: float = 15.0
    translation: float = 0.1
    flip: float = 0.5


def sample_affine(key: PRNGKeyArray, count: int, ranges: AffineRange) -> Float[Array, "b 2 3"]:
    """Draws one transform per image.

    Args:
      key: random key.
      count: B, number of images.
      ranges: AffineRange.

    Returns:
      theta float32 [B, 2, 3].
    """
    scale_key, angle_key, shift_key, flip_key = jax.random.split(key, 4)
    scale = jax.random.uniform(scale_key, (count,), minval=ranges.scale[0], maxval=ranges.scale[1])
    limit = math.radians(ranges.rotation)
    angle = jax.random.uniform(angle_key, (count,), minval=-limit, maxval=limit)
    # A shift by the whole side is 2 units.
    shift = jax.random.uniform(shift_key, (count, 2), minval=-2.0, maxval=2.0) * ranges.translation
    mirror = jnp.where(jax.random.bernoulli(flip_key, ranges.flip, (count,)), -1.0, 1.0)
    cosine, sine = jnp.cos(angle) / scale, jnp.sin(angle) / scale
    # Inverse of: mirror, then scale and rotate, then shift.
    rotate = jnp.stack([jnp.stack([cosine, sine], -1), jnp.stack([-sine, cosine], -1)], -2)
    linear = rotate * jnp.stack([mirror, jnp.ones_like(mirror)], -1)[:, :, None]
    offset = -jnp.einsum("bij,bj->bi", linear, shift)
    return jnp.concatenate([linear, offset[:, :, None]], axis=-1)


def source_positions(
    theta: Float[Array, "b 2 3"], size: tuple[int, int]
) -> tuple[Float[Array, "b h w"], Float[Array, "b h w"]]:
    """Computes where each pixel of the transformed map comes from.

    Args:
      theta: float [B, 2, 3].
      size: (height, width) of the map.

    Returns:
      x, y: float32 [B, height, width], in pixel indices of the original map (0 = centre of the first pixel).
    """
    height, width = size
    y, x = jnp.meshgrid(
        (jnp.arange(height) * 2 + 1) / height - 1, (jnp.arange(width) * 2 + 1) / width - 1, indexing="ij"
    )
    positions = jnp.stack([x, y, jnp.ones_like(x)], axis=-1)
    # Positions must be exact to a small part of a pixel; the default precision of TPUs and TF32 is not.
    source = jnp.einsum("bij,hwj->bihw", theta, positions, precision="highest")
    return ((source[:, 0] + 1) * width - 1) / 2, ((source[:, 1] + 1) * height - 1) / 2


def warp(x: Float[Array, "b h w c"], theta: Float[Array, "b 2 3"]) -> Float[Array, "b h w c"]:
    """Applies A to an image or map: bilinear, half-pixel centres, 0 for pixels from outside.

    0 is the mean colour of a normalised image. Differentiable in x. For small maps use `warp_matrix`.

    Args:
      x: float [B, H, W, C].
      theta: float [B, 2, 3].

    Returns:
      [B, H, W, C], in x's type.
    """
    batch, height, width, channels = x.shape
    column, row = source_positions(theta, (height, width))
    left, top = jnp.floor(column), jnp.floor(row)
    flat = x.reshape(batch, height * width, channels)
    result = jnp.zeros_like(x)
    for tap_row in (top, top + 1):
        for tap_column in (left, left + 1):
            inside = (tap_row >= 0) & (tap_row < height) & (tap_column >= 0) & (tap_column < width)
            weight = (1 - jnp.abs(row - tap_row)) * (1 - jnp.abs(column - tap_column)) * inside
            index = (jnp.clip(tap_row, 0, height - 1) * width + jnp.clip(tap_column, 0, width - 1)).astype(
                jnp.int32
            )
            taken = jnp.take_along_axis(flat, index.reshape(batch, -1, 1), axis=1)
            result += taken.reshape(x.shape) * weight[..., None].astype(x.dtype)
    return result


def warp_labels(labels: Int[Array, "b h w"], theta: Float[Array, "b 2 3"]) -> Int[Array, "b h w"]:
    """Applies A to a label map: nearest pixel, `IGNORE` for pixels from outside.

    Args:
      labels: integers [B, H, W].
      theta: float [B, 2, 3].

    Returns:
      [B, H, W], in labels' type.
    """
    batch, height, width = labels.shape
    column, row = (jnp.round(position) for position in source_positions(theta, (height, width)))
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    index = (jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)).astype(jnp.int32)
    taken = jnp.take_along_axis(labels.reshape(batch, -1), index.reshape(batch, -1), axis=1)
    return jnp.where(inside, taken.reshape(labels.shape), jnp.asarray(IGNORE, labels.dtype))


def warp_matrix(theta: Float[Array, "b 2 3"], size: tuple[int, int]) -> Float[Array, "b n n"]:
    """Computes A as a matrix over the cells of a small map: `warp(x) == W @ x` with x flattened row by row.

    It also acts on matrices over pairs of cells, as W R W^T (docs/method.md, The pair of views).

    Args:
      theta: float [B, 2, 3].
      size: (height, width) of the map; N = height * width.

    Returns:
      W float32 [B, N, N]. Rows of cells that come from inside sum to 1, others to less.
    """
    height, width = size
    batch, cells = theta.shape[0], height * width
    column, row = source_positions(theta, size)
    # A bilinear weight is the product of two tent functions, one per axis.
    rows = jnp.maximum(0, 1 - jnp.abs(row.reshape(batch, cells, 1) - jnp.arange(height)))
    columns = jnp.maximum(0, 1 - jnp.abs(column.reshape(batch, cells, 1) - jnp.arange(width)))
    return (rows[:, :, :, None] * columns[:, :, None, :]).reshape(batch, cells, cells)


def validity(theta: Float[Array, "b 2 3"], real: Bool[Array, "b h w"]) -> Bool[Array, "b h w"]:
    """Computes where the transformed view shows real pixels of the original (docs/method.md, The pair of views).

    Args:
      theta: float [B, 2, 3].
      real: bool [B, H, W], the real pixels of the original (`rml_jax.ops.region.box_mask`).

    Returns:
      bool [B, H, W], true where every interpolated pixel is real.
    """
    return warp(real[..., None].astype(jnp.float32), theta)[..., 0] > _INSIDE
