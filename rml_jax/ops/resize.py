"""Resizing of maps [B, H, W, C] by matrix products, which are fast on every backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    height, width = size
    if height != x.shape[1]:
        rows = jnp.asarray(bilinear_matrix(height, x.shape[1], align_corners), x.dtype)
        # Width and channels as one axis: XLA's GPU compiler (jax 0.10.2) finds no tiles for 3 channels of their own.
        pixels = x.reshape(*x.shape[:2], -1)
        x = jnp.einsum("ih,bhp->bip", rows, pixels).reshape(x.shape[0], height, *x.shape[2:])
    if width != x.shape[2]:
        columns = jnp.asarray(bilinear_matrix(width, x.shape[2], align_corners), x.dtype)
        x = jnp.einsum("jw,bhwc->bhjc", columns, x)
    return x


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
