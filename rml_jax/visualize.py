"""Masks and class activation maps as pictures: for TensorBoard, evaluation and the report alike.

Every function takes and returns NumPy arrays; pictures are uint8 [H, W, 3], RGB.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np

# Five points of matplotlib's inferno: its lightness rises evenly, so hotter always looks brighter.
_HEAT_COLORS = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])

_LUMA = np.array([0.299, 0.587, 0.114])  # weights of red, green and blue in lightness (ITU-R BT.601)
_MIN_SIDE = 128  # `grid` enlarges smaller pictures
_GAP = 4  # white pixels between the pictures of a `grid`


@functools.cache
def palette() -> np.ndarray:
    """The PASCAL VOC colour map.

    The bits of the label go in turn to red, green and blue, from each channel's highest bit downwards
    (`VOClabelcolormap` of the VOC development kit). Label 255, "ignore", falls on VOC's ivory border colour.

    Returns:
      uint8 [256, 3], the RGB colour of each label; shared and read-only.
    """
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    # The 8 bits and a zero as ninth: three groups of (red, green, blue), the most significant bit first.
    groups = np.pad(bits, ((0, 0), (0, 1))).reshape(256, 3, 3)
    colors = np.packbits(groups, axis=1).reshape(256, 3)
    colors.flags.writeable = False
    return colors


def colorize(mask: np.ndarray) -> np.ndarray:
    """Paints each label in its `palette` colour.

    Args:
      mask: uint8 [H, W], labels; 0 is background (black), 255 is ignored (ivory).

    Returns:
      uint8 [H, W, 3].
    """
    return palette()[mask]


def overlay(image: np.ndarray, mask: np.ndarray, alpha: float = 0.6) -> np.ndarray:
    """Paints the labelled pixels of a picture over its lightness; background pixels stay exactly as they are.

    Args:
      image: uint8 [H, W, 3].
      mask: uint8 [H, W], labels; 0 is background, 255 is ignored and painted ivory.
      alpha: weight of the label's colour, in 0..1.

    Returns:
      uint8 [H, W, 3].

    Raises:
      ValueError: mask and picture differ in size.
    """
    _check_size(image, mask)
    return np.where(mask[..., None] == 0, image, _blend(image, colorize(mask), alpha))


def heat_map(image: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Paints scores over a picture's lightness, from black (0) through violet, red and orange to yellow (1).

    Args:
      image: uint8 [H, W, 3].
      scores: float [H, W] in 0..1, such as a normalised class activation map; values outside are clamped.

    Returns:
      uint8 [H, W, 3].

    Raises:
      ValueError: scores and picture differ in size.
    """
    _check_size(image, scores)
    anchors = np.linspace(0, 1, len(_HEAT_COLORS))
    colors = np.stack([np.interp(scores, anchors, channel) for channel in _HEAT_COLORS.T], axis=-1)
    return _blend(image, colors, alpha=0.6)


def grid(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Sets pictures side by side, row below row, with white gaps between them.

    Pictures may differ in size: a row is as high as its highest picture, a column as wide as its widest. Tiny
    ones are first enlarged by a whole factor, each pixel to a square, until their shorter side reaches 128.

    Args:
      rows: at least one row of at least one picture, uint8 [h, w, 3]; all rows have the same length.

    Returns:
      uint8 [H, W, 3].

    Raises:
      ValueError: there is no picture, or rows differ in length.
    """
    rows = [[_enlarge(image) for image in row] for row in rows]
    columns = list(zip(*rows, strict=True))
    if not columns:
        raise ValueError("a grid needs at least one picture")
    heights = [max(image.shape[0] for image in row) for row in rows]
    widths = [max(image.shape[1] for image in column) for column in columns]
    tops, lefts = _starts(heights), _starts(widths)
    canvas = np.full((tops[-1] + heights[-1], lefts[-1] + widths[-1], 3), 255, np.uint8)
    for top, row in zip(tops, rows, strict=True):
        for left, image in zip(lefts, row, strict=True):
            canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas


def _enlarge(image: np.ndarray) -> np.ndarray:
    factor = math.ceil(_MIN_SIDE / min(image.shape[:2]))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def _starts(sizes: Sequence[int]) -> list[int]:
    return [sum(sizes[:i]) + i * _GAP for i in range(len(sizes))]


def _blend(image: np.ndarray, colors: np.ndarray, alpha: float) -> np.ndarray:
    # Over the picture in grey: its own colours would shift those that carry the meaning.
    grey = image @ _LUMA
    return np.rint((1 - alpha) * grey[..., None] + alpha * colors).astype(np.uint8)


def _check_size(image: np.ndarray, labels: np.ndarray) -> None:
    if image.shape[:2] != labels.shape:
        raise ValueError(f"the picture has shape {image.shape}, what is laid over it {labels.shape}")
