"""Rendering of masks and class activation maps, for TensorBoard, evaluation and the report.

All functions take and return NumPy arrays; images are uint8 [H, W, 3], RGB.
"""

import functools
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rml_jax.labels import IGNORE

# Five points of matplotlib's inferno, whose lightness rises evenly.
HEAT_COLORS = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])

_LUMA = np.array([0.299, 0.587, 0.114])  # weights of red, green and blue in lightness (ITU-R BT.601)
_MIN_SIDE = 128  # `grid` enlarges smaller images
_GAP = 4  # white pixels between the images of a `grid`
_FONT_SIZE = 13  # of captions and legends, pixels
_LINE = 18  # height of a line of text, pixels
_MARGIN = 4  # white pixels around text

_VOC_CLASSES = 20  # labels up to here have VOC's own colours
_DARKEST = 0.35  # lightness that other labels' colours exceed, to be distinct from the background's black
# Linear RGB to OKLab, a perceptually uniform colour space (B. Ottosson, 2020): first to cone responses, then from
# their cube roots to lightness and two axes of hue.
_CONES = np.array(
    [
        (0.4122214708, 0.5363325363, 0.0514459929),
        (0.2119034982, 0.6806995451, 0.1073969566),
        (0.0883024619, 0.2817188376, 0.6299787005),
    ]
)
_OKLAB = np.array(
    [
        (0.2104542553, 0.7936177850, -0.0040720468),
        (1.9779984951, -2.4285922050, 0.4505937099),
        (0.0259040371, 0.7827717662, -0.8086757660),
    ]
)


@functools.cache
def palette() -> np.ndarray:
    """Returns a colour for each label; all are easy to distinguish.

    Background, the first 20 classes and 255, "ignore", have the colours of PASCAL VOC's masks (`VOClabelcolormap` of
    the VOC development kit). VOC's colours of further labels are too similar (label 65 differs from label 1 by 32 of
    255 in green). Here each further label has the colour with the greatest perceptual distance from all before it.

    Returns:
      uint8 [256, 3], the RGB colour of each label; shared and read-only.
    """
    colors = _voc_colors()
    steps = np.arange(0, 256, 17)
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    candidates = candidates[_oklab(candidates)[:, 0] > _DARKEST]
    places = _oklab(candidates)
    taken = _oklab(np.concatenate([colors[: _VOC_CLASSES + 1], colors[IGNORE:]]))
    distance = np.linalg.norm(places[:, None] - taken, axis=-1).min(axis=1)
    for label in range(_VOC_CLASSES + 1, IGNORE):
        farthest = distance.argmax()
        colors[label] = candidates[farthest]
        distance = np.minimum(distance, np.linalg.norm(places - places[farthest], axis=-1))
    colors.flags.writeable = False
    return colors


def _voc_colors() -> np.ndarray:
    # The bits of the label go in turn to red, green and blue, from each channel's highest bit downwards: the 8 bits
    # and a ninth zero form three groups of (red, green, blue), the most significant bit first.
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    groups = np.pad(bits, ((0, 0), (0, 1))).reshape(256, 3, 3)
    return np.packbits(groups, axis=1).reshape(256, 3)


def _oklab(colors: np.ndarray) -> np.ndarray:
    values = colors / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _CONES.T) @ _OKLAB.T


def colorize(mask: np.ndarray) -> np.ndarray:
    """Paints each label in its `palette` colour.

    Args:
      mask: uint8 [H, W], labels; 0 is background (black), 255 is ignored (ivory).

    Returns:
      uint8 [H, W, 3].
    """
    return palette()[mask]


def overlay(image: np.ndarray, mask: np.ndarray, alpha: float = 0.6) -> np.ndarray:
    """Blends the colours of labelled pixels with the image in grey; background pixels are unchanged.

    Args:
      image: uint8 [H, W, 3].
      mask: uint8 [H, W], labels; 0 is background, 255 is ignored and painted ivory.
      alpha: weight of the label's colour, in 0..1.

    Returns:
      uint8 [H, W, 3].

    Raises:
      ValueError: if mask and image differ in size.
    """
    _check_size(image, mask)
    return np.where(mask[..., None] == 0, image, _blend(image, colorize(mask), alpha))


def heat_map(image: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Blends scores with the image in grey, from black (0) through violet, red and orange to yellow (1).

    Args:
      image: uint8 [H, W, 3].
      scores: float [H, W] in 0..1, such as a normalised class activation map; values outside are clamped.

    Returns:
      uint8 [H, W, 3].

    Raises:
      ValueError: if scores and image differ in size.
    """
    _check_size(image, scores)
    anchors = np.linspace(0, 1, len(HEAT_COLORS))
    colors = np.stack([np.interp(scores, anchors, channel) for channel in HEAT_COLORS.T], axis=-1)
    return _blend(image, colors, alpha=0.6)


def affinity_map(image: np.ndarray, affinity: np.ndarray, pixel: tuple[int, int]) -> np.ndarray:
    """Paints the affinity of all pixels to one pixel, which is marked by a ring.

    Args:
      image: uint8 [H, W, 3].
      affinity: float [h, w] in 0..1, the pixel's row of the affinity R_a as a grid over the image, of any resolution
        (docs/method.md, Network).
      pixel: row and column of the pixel in the image.

    Returns:
      uint8 [H, W, 3].
    """
    height, width = image.shape[:2]
    if affinity.shape != (height, width):
        grid_image = Image.fromarray(np.asarray(affinity, np.float32))
        affinity = np.asarray(grid_image.resize((width, height), Image.Resampling.BILINEAR))
    painted = Image.fromarray(heat_map(image, affinity))
    row, column = pixel
    draw, radius = ImageDraw.Draw(painted), max(2, min(height, width) // 24)
    for grown, color in ((1, "black"), (0, "white")):  # visible on dark and on bright ground
        reach = radius + grown
        box = (column - reach, row - reach, column + reach, row + reach)
        draw.ellipse(box, outline=color, width=1 + grown)
    return np.asarray(painted)


def legend(names: Sequence[str], colors: np.ndarray, width: int = 240) -> np.ndarray:
    """Draws class names beside their colours, in as many columns as fit.

    Args:
      names: one name per colour, at least one; names wider than the legend are cut.
      colors: uint8 [n, 3], such as `palette()[labels]`.
      width: in pixels.

    Returns:
      uint8 [h, width, 3], dark text on white.

    Raises:
      ValueError: if there are no names, or another number of colours.
    """
    if len(names) != len(colors) or not len(names):
        raise ValueError(f"found {len(names)} names and {len(colors)} colours: expected one name per colour")
    swatch = _FONT_SIZE + 2 * _MARGIN
    entry = swatch + math.ceil(max(map(_font().getlength, names))) + 2 * _MARGIN
    columns = min(max(1, (width - _MARGIN) // entry), len(names))
    rows = math.ceil(len(names) / columns)
    image = Image.new("RGB", (width, rows * _LINE + 2 * _MARGIN), "white")
    draw = ImageDraw.Draw(image)
    for number, (name, color) in enumerate(zip(names, colors, strict=True)):
        left = _MARGIN + number // rows * entry
        top = _MARGIN + number % rows * _LINE
        draw.rectangle(
            (left, top + 2, left + _FONT_SIZE, top + _FONT_SIZE), fill=tuple(map(int, color)), outline="black"
        )
        draw.text((left + swatch, top), name, fill="black", font=_font())
    return np.asarray(image)


def grid(
    rows: Sequence[Sequence[np.ndarray]],
    captions: Sequence[Sequence[str]] | None = None,
    min_side: int = _MIN_SIDE,
) -> np.ndarray:
    """Arranges images in a grid, with white gaps between them.

    Images may differ in size: a row is as high as its highest image, a column as wide as its widest. Small images are
    first enlarged by an integer factor, nearest neighbour.

    Args:
      rows: at least one row of at least one image, uint8 [h, w, 3]; all rows have the same length.
      captions: text above each image, wrapped to its column's width; a row whose captions are all "" gets no space
        for them. None for a grid without text.
      min_side: images whose shorter side has fewer pixels are enlarged; 1 keeps all sizes.

    Returns:
      uint8 [H, W, 3].

    Raises:
      ValueError: if there is no image, rows differ in length, or captions and images differ in arrangement.
    """
    rows = [[_enlarge(image, min_side) for image in row] for row in rows]
    columns = list(zip(*rows, strict=True))
    if not columns:
        raise ValueError("a grid needs at least one image")
    widths = [max(image.shape[1] for image in column) for column in columns]
    if captions:
        rows = [_with_captions(*row, widths) for row in zip(rows, captions, strict=True)]
    heights = [max(image.shape[0] for image in row) for row in rows]
    tops, lefts = _starts(heights), _starts(widths)
    canvas = np.full((tops[-1] + heights[-1], lefts[-1] + widths[-1], 3), 255, np.uint8)
    for top, row in zip(tops, rows, strict=True):
        for left, image in zip(lefts, row, strict=True):
            canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas


def _with_captions(
    images: Sequence[np.ndarray], captions: Sequence[str], widths: Sequence[int]
) -> list[np.ndarray]:
    """Puts captions above a row's images, which all start at the same height."""
    lines = [_wrap(caption, width) for caption, width in zip(captions, widths, strict=True)]
    most = max(map(len, lines))
    if not most:
        return list(images)
    height = most * _LINE + _MARGIN
    below = []
    for image, text, width in zip(images, lines, widths, strict=True):
        captioned = Image.new("RGB", (width, height + image.shape[0]), "white")
        for number, line in enumerate(text, start=most - len(text)):
            ImageDraw.Draw(captioned).text((0, number * _LINE), line, fill="black", font=_font())
        captioned.paste(Image.fromarray(image), (0, height))
        below.append(np.asarray(captioned))
    return below


def _wrap(text: str, width: int) -> list[str]:
    letters = max(1, int(width / _font().getlength("n")))
    return textwrap.wrap(text, letters)


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    # Pillow's default font has no accented letters.
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), _FONT_SIZE)


def _enlarge(image: np.ndarray, min_side: int) -> np.ndarray:
    factor = math.ceil(min_side / min(image.shape[:2]))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def _starts(sizes: Sequence[int]) -> list[int]:
    return [sum(sizes[:i]) + i * _GAP for i in range(len(sizes))]


def _blend(image: np.ndarray, colors: np.ndarray, alpha: float) -> np.ndarray:
    # On the image in grey, since its colours would shift those of the labels.
    grey = image @ _LUMA
    return np.rint((1 - alpha) * grey[..., None] + alpha * colors).astype(np.uint8)


def _check_size(image: np.ndarray, labels: np.ndarray) -> None:
    if image.shape[:2] != labels.shape:
        raise ValueError(f"the image has shape {image.shape}, found a mask or scores of shape {labels.shape}")
