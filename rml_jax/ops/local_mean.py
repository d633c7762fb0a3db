"""The mean of a map around each of its cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from rml_jax.ops.resize import resize_columns, resize_rows

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


def local_mean(
    x: Float[Array, "b h w c"], radius: int, cells: Bool[Array, "b h w"] | None = None
) -> Float[Array, "b h w c"]:
    """Computes the mean over the square of cells around each cell.

    Args:
      x: float [B, H, W, C].
      radius: least number of cells to the square's edge; the square has 2 * radius + 1 cells a side, and fewer at the
        map's border.
      cells: bool [B, H, W], the cells that take part; None takes all.

    Returns:
      float [B, H, W, C]; 0 where no cell of the square takes part.
    """
    rows, columns = (_band(side, radius, x.dtype) for side in x.shape[1:3])
    if cells is None:
        count = rows.sum(axis=1)[:, None, None] * columns.sum(axis=1)[:, None]
        return _square_sum(x, rows, columns) / count
    count = _square_sum(cells[..., None].astype(x.dtype), rows, columns)
    return _square_sum(jnp.where(cells[..., None], x, 0), rows, columns) / jnp.maximum(count, 1)


def _square_sum(x, rows, columns):
    # A cell is compared with its mean, so that the products' default precision on TPUs is too low.
    return resize_columns(resize_rows(x, rows, "highest"), columns, "highest")


def _band(side, radius, dtype):
    """Returns the matrix [side, side] with ones up to `radius` beside the diagonal."""
    index = jnp.arange(side)
    return (jnp.abs(index[:, None] - index) <= radius).astype(dtype)
