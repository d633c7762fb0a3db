"""Overlapping tiles of an image that is larger than any canvas, and blending of their results."""

import numpy as np

OVERLAP = 0.25
"""Smallest overlap of neighbouring tiles, as a fraction of a tile's side."""


def tile_starts(length, tile):
    """Computes the starts of tiles along one axis: evenly spaced, the first at 0, the last ending with the image.

    Args:
      length: of the image, in pixels.
      tile: length of a tile, in pixels.

    Returns:
      List of ints, ascending; [0] if one tile is enough.
    """
    if length <= tile:
        return [0]
    overlap = round(OVERLAP * tile)
    count = -(-(length - overlap) // (tile - overlap))
    return [round(index * (length - tile) / (count - 1)) for index in range(count)]


def tile_weights(start, size, length, overlap):
    """Computes the blending weights of a tile's pixels along one axis.

    The weight rises linearly from the tile's edge over the overlap, since the network has little context there. It is
    not reduced at the image's edges.

    Args:
      start: the tile's first pixel.
      size: number of pixels of the tile.
      length: number of pixels of the image.
      overlap: number of pixels over which the weight rises.

    Returns:
      float32 [size], in (0, 1].
    """
    place = np.arange(size, dtype=np.float32) + 0.5
    weights = np.ones(size, np.float32)
    if start > 0:
        weights = np.minimum(weights, place / overlap)
    if start + size < length:
        weights = np.minimum(weights, place[::-1] / overlap)
    return weights


class RowBlender:
    """Computes weighted means of overlapping tiles, which are added row by row from top to bottom.

    Only one row of tiles is kept in memory.

    Args:
      height, width: of the image.
      tile: (height, width) of a tile, at most the image's.
      channels: of the maps.
    """

    def __init__(self, height, width, tile, channels):
        self._size, self._tile = (height, width), tile
        self._overlap = [max(1, round(OVERLAP * side)) for side in tile]
        self._sum = np.zeros((tile[0], width, channels), np.float32)
        self._weight = np.zeros((tile[0], width, 1), np.float32)
        self._top = 0

    def add(self, top, left, maps):
        """Adds a tile of the current row of tiles, float32 [tile height, tile width, channels]."""
        rows, columns = (
            tile_weights(start, size, length, overlap)
            for start, size, length, overlap in zip(
                (top, left), self._tile, self._size, self._overlap, strict=True
            )
        )
        weight = (rows[:, None] * columns)[..., None]
        across = slice(left, left + self._tile[1])
        self._sum[:, across] += weight * maps
        self._weight[:, across] += weight

    def finish_rows(self, next_top):
        """Returns the rows of pixels that no further tile overlaps.

        Args:
          next_top: start of the next row of tiles; the image's height after the last one.

        Returns:
          Index of the first of these rows, and float32 [rows, width, channels].
        """
        count, first = next_top - self._top, self._top
        done = self._sum[:count] / self._weight[:count]
        for band in (self._sum, self._weight):
            band[: len(band) - count] = band[count:].copy()
            band[len(band) - count :] = 0
        self._top = next_top
        return first, done
