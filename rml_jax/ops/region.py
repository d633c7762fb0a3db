"""The real part of a padded image, and operators that ignore the padding.

A batch holds images of several sizes on one canvas. The real part of each is a box, int32 [B, 4]: top, left, bottom,
right in pixels, half-open. Crops in training can lie anywhere on their canvas. Images in evaluation lie in its top
left corner, so that their height and width, `sizes` int32 [B, 2], are enough; `box_of_sizes` returns their boxes.

Within each image's true size, operators that take `sizes` give the same result as the plain operator on the image
alone; values outside do not affect it. With `sizes` None, the images fill the canvas.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from rml_jax.ops.resize import resize_bilinear, resize_columns, resize_rows

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Shaped


def box_of_sizes(sizes: Int[Array, "b 2"]) -> Int[Array, "b 4"]:
    """Returns the boxes of images in the top left corner of their canvas.

    Args:
      sizes: int32 [B, 2], height and width of each image, at least 1.

    Returns:
      int32 [B, 4].
    """
    return jnp.pad(sizes, ((0, 0), (2, 0)))


def box_mask(box: Int[Array, "b 4"], size: tuple[int, int], canvas: tuple[int, int]) -> Bool[Array, "b h w"]:
    """Computes which cells of a map lie on real pixels.

    Args:
      box: int [B, 4].
      size: (height, width) of the map.
      canvas: (height, width) in pixels of the canvas that the map covers.

    Returns:
      bool [B, height, width], true where the centre of the cell lies in the box.
    """
    box = box[:, :, None]
    y = (jnp.arange(size[0]) + 0.5) * canvas[0] / size[0]
    x = (jnp.arange(size[1]) + 0.5) * canvas[1] / size[1]
    rows, columns = (box[:, 0] <= y) & (y < box[:, 2]), (box[:, 1] <= x) & (x < box[:, 3])
    return rows[:, :, None] & columns[:, None, :]


def inside(sizes: Int[Array, "b 2"], canvas: tuple[int, int]) -> Bool[Array, "b h w"]:
    """Computes which pixels of a canvas lie in images in its top left corner.

    Args:
      sizes: int32 [B, 2].
      canvas: (height, width).

    Returns:
      bool [B, height, width].
    """
    return box_mask(box_of_sizes(sizes), canvas, canvas)


def blank_outside(x: Shaped[Array, "b h w c"], sizes: Int[Array, "b 2"] | None) -> Shaped[Array, "b h w c"]:
    """Sets values outside the images to 0, as a convolution with zero padding requires.

    Args:
      x: [B, H, W, C].
      sizes: int32 [B, 2] or None.

    Returns:
      [B, H, W, C], in x's type.
    """
    if sizes is None:
        return x
    return jnp.where(inside(sizes, x.shape[1:3])[..., None], x, 0)


def replicate_edges(
    x: Shaped[Array, " b *rest"],
    sizes: Int[Array, "b 2"] | None,
    axes: tuple[int, int] = (1, 2),
    margin: int = 0,
) -> Shaped[Array, " b *padded"]:
    """Repeats each image's outermost rows and columns up to the edges of the canvas and beyond.

    Args:
      x: [B, ...].
      sizes: int32 [B, 2] or None.
      axes: x's axes of rows and columns.
      margin: number of rows and columns that are added on every side.

    Returns:
      Array of x's type, both axes longer by 2 * margin.
    """
    if sizes is None and not margin:
        return x
    lengths = (x.shape[axes[0]], x.shape[axes[1]]) if sizes is None else sizes.T
    for axis, length in zip(axes, lengths, strict=True):
        length = jnp.broadcast_to(length, x.shape[:1]).reshape(-1, *[1] * (x.ndim - 1))
        first = jax.lax.slice_in_dim(x, 0, 1, axis=axis)
        last = jnp.take_along_axis(x, length - 1, axis=axis)
        added = [(margin, margin, 0) if a == axis else (0, 0, 0) for a in range(x.ndim)]
        # Zeros and two selections are one pass on a CPU, jnp.pad's edges are several.
        x = jax.lax.pad(x, jnp.zeros((), x.dtype), added)
        position = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis) - margin
        x = jnp.where(position < 0, first, jnp.where(position < length, x, last))
    return x


def mirror_inside(x: Shaped[Array, "b h w c"], sizes: Int[Array, "b 2"] | None) -> Shaped[Array, "b h w c"]:
    """Mirrors each image horizontally in place; values outside the images are unchanged.

    Args:
      x: [B, H, W, C].
      sizes: int32 [B, 2] or None.

    Returns:
      Array of x's shape and type.
    """
    if sizes is None:
        return x[:, :, ::-1]
    column, width = jnp.arange(x.shape[2]), sizes[:, 1:]
    source = jnp.where(column < width, width - 1 - column, column)
    return jnp.take_along_axis(x, source[:, None, :, None], axis=2)


def resize_inside(
    x: Float[Array, "b h w c"],
    sizes: Int[Array, "b 2"] | None,
    canvas: tuple[int, int],
    new_sizes: Int[Array, "b 2"] | None,
) -> Float[Array, "b h2 w2 c"]:
    """Resizes each image as `resize_bilinear` resizes it alone: half-pixel centres, replicated edges.

    Args:
      x: float [B, H, W, C].
      sizes: int32 [B, 2], in x, or None.
      canvas: (height, width) of the result.
      new_sizes: int32 [B, 2], in the result; None if `sizes` is.

    Returns:
      [B, height, width, C], in x's type, 0 outside.
    """
    if sizes is None:
        return resize_bilinear(x, canvas)
    rows = _bilinear_matrices(new_sizes[:, 0], sizes[:, 0], canvas[0], x.shape[1])
    columns = _bilinear_matrices(new_sizes[:, 1], sizes[:, 1], canvas[1], x.shape[2])
    # Values outside have weight 0, which removes all but infinities and NaNs.
    return resize_columns(resize_rows(x, rows.astype(x.dtype)), columns.astype(x.dtype))


def _bilinear_matrices(new, old, size_out, size_in):
    """Computes `bilinear_matrix` of traced lengths int [B]: float32 [B, size_out, size_in], rows beyond `new` all 0.

    Positions are integer multiples of 1 / (2 new) samples, so that weights are exact to float32.
    """
    new, old = new[:, None], old[:, None]
    index = jnp.arange(size_out)
    position = jnp.clip((2 * index + 1) * old - new, 0, 2 * new * (old - 1))
    low = position // (2 * new)
    fraction = ((position - 2 * new * low) / (2 * new))[..., None]
    sample = jnp.arange(size_in)
    weights = (1 - fraction) * (low[..., None] == sample) + fraction * (low[..., None] + 1 == sample)
    return jnp.where((index < new)[..., None], weights, 0)
