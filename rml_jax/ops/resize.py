"""Resizing of maps [B, H, W, C] by matrix products, which are fast on every backend."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Shaped


def bilinear_matrix(size_out: int, size_in: int, align_corners: bool = False) -> np.ndarray:
    """Computes the weights of 1-D linear interpolation with replicated edges, without antialiasing.

    The two conventions are those of torch's `interpolate(mode="bilinear")`.

    Args:
      size_out, size_in: lengths in samples.
      align_corners: False: half-pixel centres, the outer edges of the first and last samples coincide. True: their
        centres coincide; a single output sample is the first input sample.

    Returns:
      float32 [size_out, size_in], rows sum to 1.
    """
    index = np.arange(size_out)
    if align_corners:
        position = index * (size_in - 1) / max(size_out - 1, 1)
    else:
        position = np.clip((index + 0.5) * size_in / size_out - 0.5, 0, size_in - 1)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, size_in - 1)
    fraction = position - low
    matrix = np.zeros((size_out, size_in))
    np.add.at(matrix, (index, low), 1 - fraction)
    np.add.at(matrix, (index, high), fraction)
    return matrix.astype(np.float32)


def resize_bilinear(
    x: Float[Array, "b h w c"], size: tuple[int, int], *, align_corners: bool = False
) -> Float[Array, "b h2 w2 c"]:
    """Resizes maps bilinearly.

    The method uses half-pixel centres throughout; aligned corners reproduce the maps of other implementations.

    Args:
      x: float [B, H, W, C].
      size: (height, width) of the result.
      align_corners: see `bilinear_matrix`.

    Returns:
      [B, height, width, C], in x's type.
    """
    for axis, function in ((1, resize_rows), (2, resize_columns)):
        if size[axis - 1] != x.shape[axis]:
            matrix = bilinear_matrix(size[axis - 1], x.shape[axis], align_corners)
            x = function(x, jnp.asarray(matrix, x.dtype))
    return x


def resize_rows(
    x: Float[Array, "b h w c"], matrix: Float[Array, "*b i h"], precision: str | None = None
) -> Float[Array, "b i w c"]:
    """Computes new rows as weighted sums of rows.

    Args:
      x: float [B, H, W, C].
      matrix: weights [I, H], or [B, I, H] of each image.
      precision: of the matrix product, see `jax.numpy.einsum`.

    Returns:
      [B, I, W, C].
    """
    subscripts = "ih,bhwc->biwc" if matrix.ndim == 2 else "bih,bhwc->biwc"
    product = functools.partial(jnp.einsum, subscripts, precision=precision)

    def of_sums(matrix, x):
        return _sum_products(matrix[..., None, None], x[:, None], axis=2)

    return _by_platform(product, of_sums, matrix, x)


def resize_columns(
    x: Float[Array, "b h w c"], matrix: Float[Array, "*b j w"], precision: str | None = None
) -> Float[Array, "b h j c"]:
    """Computes new columns as weighted sums of columns.

    Args:
      x: float [B, H, W, C].
      matrix: weights [J, W], or [B, J, W] of each image.
      precision: see `resize_rows`.

    Returns:
      [B, H, J, C].
    """
    subscripts = "jw,bhwc->bhjc" if matrix.ndim == 2 else "bjw,bhwc->bhjc"
    product = functools.partial(jnp.einsum, subscripts, precision=precision)

    def of_sums(matrix, x):
        return _sum_products(matrix[..., None, :, :, None], x[:, :, None], axis=3)

    return _by_platform(product, of_sums, matrix, x)


def _by_platform(product, of_sums, matrix, x):
    """Computes a matrix product or, on NVIDIA's GPUs, the same sums of products.

    XLA's GPU compiler (jax 0.10.2) fails on products whose maps have channels that are no multiple of a tile
    ("Couldn't find output tile sizes"), and on pairs of such products, which it merges. Sums are fused with what
    precedes and follows them. Programs exported for a batch of any size have the product only, which converters to
    other formats can read.
    """
    if not isinstance(x.shape[0], int):
        return product(matrix, x)
    return jax.lax.platform_dependent(matrix, x, cuda=of_sums, default=product)


def _sum_products(weights, x, axis):
    """Sums weights times x along an axis in float32; the result has x's type."""
    products = weights.astype(jnp.float32) * x.astype(jnp.float32)
    return products.sum(axis=axis).astype(x.dtype)


def resize_nearest(x: Shaped[Array, "b h w *c"], size: tuple[int, int]) -> Shaped[Array, "b h2 w2 *c"]:
    """Resizes label maps by nearest neighbour with half-pixel centres.

    Args:
      x: [B, H, W] or [B, H, W, C] of any type.
      size: (height, width) of the result.

    Returns:
      [B, height, width, ...], in x's type.
    """
    rows, columns = (
        np.minimum(((np.arange(wanted) + 0.5) * given / wanted).astype(int), given - 1)
        for wanted, given in zip(size, x.shape[1:3], strict=True)
    )
    return x[:, rows[:, None], columns[None, :]]
