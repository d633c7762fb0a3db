"""Images joined of two of a batch, side by side or one above the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Key, Shaped

_CUTS = (0.3, 0.7)
"""Range of the cut's place, as a fraction of the side."""


def sample_parts(
    key: Key[Array, ""], count: int, grid: tuple[int, int], share: float
) -> tuple[Bool[Array, "b h w"], Bool[np.ndarray, " b"]]:
    """Draws which images of a batch are joined with their partner, and where.

    A straight cut between two cells, along rows or columns, parts a joined image. The share is spread evenly over the
    batch, so that it holds in every batch and on every device.

    Args:
      key: random key.
      count: B, number of images.
      grid: (h, w) of the last stage, at least 2x2.
      share: of the images that are joined, 0 to 1; rounded down to whole images.

    Returns:
      bool [B, h, w], the cells that keep the image itself; the others show its partner (`join`).
      bool [B], which images are joined. The others keep all cells.
    """
    place_key, axis_key = jax.random.split(key)
    place = jax.random.uniform(place_key, (count, 1, 1), minval=_CUTS[0], maxval=_CUTS[1])
    rows, columns = (jnp.arange(side) < jnp.clip(jnp.round(place * side), 1, side - 1) for side in grid)
    along_rows = jax.random.bernoulli(axis_key, shape=(count, 1, 1))
    kept = jnp.where(along_rows, rows.swapaxes(1, 2), columns)
    joined = np.diff(np.floor(np.arange(count + 1) * share)) > 0
    return kept | ~joined[:, None, None], joined


def join(x: Shaped[Array, "*shape"], kept: Bool[Array, "*#shape"]) -> Shaped[Array, "*shape"]:
    """Fills what an image does not keep with its partner, the image before it in the batch.

    Args:
      x: [B, ...], for example images [B, H, W, 3] or tags [B, C].
      kept: bool, broadcastable to x.

    Returns:
      [B, ...]; the first image's partner is the last one.
    """
    return jnp.where(kept, x, jnp.roll(x, 1, axis=0))


def enlarge(kept: Bool[Array, "b h w"], stride: int, size: tuple[int, int]) -> Bool[Array, "b _h _w 1"]:
    """Repeats a mask of cells for their pixels.

    Args:
      kept: bool [B, h, w].
      stride: pixels per cell.
      size: (height, width) in pixels, at most stride times that of the grid.

    Returns:
      bool [B, height, width, 1].
    """
    pixels = jnp.repeat(jnp.repeat(kept, stride, axis=1), stride, axis=2)
    return pixels[:, : size[0], : size[1], None]
