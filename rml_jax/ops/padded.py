"""Pictures of several sizes in one batch, each in the top left corner of a common canvas.

Throughout, `sizes` is int32 [B, 2], the true height and width of each picture or map, at least 1 and at most the
canvas. Inside of its true size, every map that comes out is what the plain operator gives for the picture alone;
what lies outside never reaches it.
"""

import jax
import jax.numpy as jnp

from rml_jax.ops.affine import box_mask


def inside(sizes, canvas):
    """Where each picture is.

    Args:
      sizes: int32 [B, 2].
      canvas: (height, width).

    Returns:
      bool [B, height, width].
    """
    return box_mask(jnp.pad(sizes, ((0, 0), (2, 0))), canvas, canvas)


def blank_outside(x, sizes):
    """The maps with zeros around the pictures, which is what a convolution with zero padding must see there.

    Args:
      x: [B, H, W, C].
      sizes: int32 [B, 2], or None if the pictures fill the canvas.

    Returns:
      [B, H, W, C], in x's type.
    """
    if sizes is None:
        return x
    return jnp.where(inside(sizes, x.shape[1:3])[..., None], x, 0)


def replicate_edges(x, sizes, axes=(1, 2)):
    """The maps with each picture's last row and last column repeated up to the edges of the canvas.

    Args:
      x: [B, ...].
      sizes: int32 [B, 2].
      axes: x's axes of rows and columns.

    Returns:
      As x.
    """
    for axis, length in zip(axes, sizes.T, strict=True):
        length = jnp.expand_dims(length, tuple(range(1, x.ndim)))
        last = jnp.take_along_axis(x, length - 1, axis=axis)
        x = jnp.where(jax.lax.broadcasted_iota(jnp.int32, x.shape, axis) < length, x, last)
    return x


def mirror_inside(x, sizes):
    """Each picture mirrored horizontally in its own place; what is beside it stays.

    Args:
      x: [B, H, W, C].
      sizes: int32 [B, 2].

    Returns:
      As x.
    """
    column, width = jnp.arange(x.shape[2]), sizes[:, 1:]
    source = jnp.where(column < width, width - 1 - column, column)
    return jnp.take_along_axis(x, source[:, None, :, None], axis=2)


def resize_inside(x, sizes, canvas, new_sizes):
    """Bilinear resize with half-pixel centres and replicated edges, as `resize_bilinear` for each picture alone.

    Args:
      x: float [B, H, W, C].
      sizes: int32 [B, 2], in x.
      canvas: (height, width) of the result.
      new_sizes: int32 [B, 2], in the result.

    Returns:
      [B, height, width, C], in x's type, 0 outside.
    """
    rows = _bilinear_matrices(new_sizes[:, 0], sizes[:, 0], canvas[0], x.shape[1])
    columns = _bilinear_matrices(new_sizes[:, 1], sizes[:, 1], canvas[1], x.shape[2])
    # Outside there may be anything but infinities and NaNs, which a weight of 0 would not take away.
    x = jnp.einsum("bih,bhwc->biwc", rows.astype(x.dtype), x)
    return jnp.einsum("bjw,biwc->bijc", columns.astype(x.dtype), x)


def _bilinear_matrices(new, old, size_out, size_in):
    """`bilinear_matrix` for traced lengths int [B]: float32 [B, size_out, size_in], rows beyond `new` all 0.

    Positions are counted in whole numbers of 1 / (2 new) samples, so that weights are exact to float32.
    """
    new, old = new[:, None], old[:, None]
    index = jnp.arange(size_out)
    position = jnp.clip((2 * index + 1) * old - new, 0, 2 * new * (old - 1))
    low = position // (2 * new)
    fraction = ((position - 2 * new * low) / (2 * new))[..., None]
    sample = jnp.arange(size_in)
    weights = (1 - fraction) * (low[..., None] == sample) + fraction * (low[..., None] + 1 == sample)
    return jnp.where((index < new)[..., None], weights, 0)
