"""Masks and class activation maps as pictures: for TensorBoard, evaluation and the report alike.

Every function takes and returns NumPy arrays; pictures are uint8 [H, W, 3], RGB.
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

# Five points of matplotlib's inferno: its lightness rises evenly, so hotter always looks brighter.
_HEAT_COLORS = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])

_LUMA = np.array([0.299, 0.587, 0.114])  # weights of red, green and blue in lightness (ITU-R BT.601)
_MIN_SIDE = 128  # `grid` enlarges smaller pictures
_GAP = 4  # white pixels between the pictures of a `grid`
_FONT_SIZE = 13  # of captions and legends, pixels
_LINE = 18  # height of a line of text, pixels
_MARGIN = 4  # white pixels around text

_VOC_CLASSES = 20  # labels up to here have VOC's own colours
_DARKEST = 0.35  # lightness that other labels' colours exceed: dark ones pass for the background's black
# Linear red, green and blue to OKLab, where distances are about as large as the eye finds them (B. Ottosson, 2020):
# to the responses of the eye's cones, whose cube roots then go to lightness and two axes of hue.
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
    """A colour for each label, told apart however many classes there are.

    Background, the first 20 classes and 255, "ignore", have the colours of PASCAL VOC's masks (`VOClabelcolormap` of
    the VOC development kit). VOC's colours of further labels differ by little (its label 65 from its label 1 by 32 of
    255 in green); here each is the colour farthest from all before it, to the eye.

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
    # and a zero as ninth make three groups of (red, green, blue), the most significant bit first.
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


def affinity_map(image: np.ndarray, affinity: np.ndarray, pixel: tuple[int, int]) -> np.ndarray:
    """Paints how strongly each place belongs together with one pixel, which gets a ring.

    Args:
      image: uint8 [H, W, 3].
      affinity: float [h, w] in 0..1, the pixel's row of the affinity matrix as a grid over the picture, of any
        resolution; `R_a[cell].reshape(h, w)` of METHOD.md section 1.
      pixel: the pixel's row and column in the picture.

    Returns:
      uint8 [H, W, 3].
    """
    height, width = image.shape[:2]
    if affinity.shape != (height, width):
        grid_image = Image.fromarray(np.asarray(affinity, np.float32))
        affinity = np.asarray(grid_image.resize((width, height), Image.Resampling.BILINEAR))
    picture = Image.fromarray(heat_map(image, affinity))
    row, column = pixel
    draw, radius = ImageDraw.Draw(picture), max(2, min(height, width) // 24)
    for grown, color in ((1, "black"), (0, "white")):  # seen on dark and on bright ground
        reach = radius + grown
        box = (column - reach, row - reach, column + reach, row + reach)
        draw.ellipse(box, outline=color, width=1 + grown)
    return np.asarray(picture)


def legend(names: Sequence[str], colors: np.ndarray, width: int = 240) -> np.ndarray:
    """Draws class names beside their colours, in as many columns as fit.

    Args:
      names: what each colour means, at least one; names longer than the picture is wide are cut.
      colors: uint8 [n, 3], one for each name, such as `palette()[labels]`.
      width: pixels; to go below another picture, that picture's: `grid([[picture], [legend(...)]], min_side=1)`.

    Returns:
      uint8 [h, width, 3], dark text on white.

    Raises:
      ValueError: there are not as many colours as names.
    """
    if len(names) != len(colors) or not len(names):
        raise ValueError(f"found {len(names)} names and {len(colors)} colours: expected one name per colour")
    swatch = _FONT_SIZE + 2 * _MARGIN
    entry = swatch + math.ceil(max(map(_font().getlength, names))) + 2 * _MARGIN
    columns = min(max(1, (width - _MARGIN) // entry), len(names))
    rows = math.ceil(len(names) / columns)
    picture = Image.new("RGB", (width, rows * _LINE + 2 * _MARGIN), "white")
    draw = ImageDraw.Draw(picture)
    for number, (name, color) in enumerate(zip(names, colors, strict=True)):
        left = _MARGIN + number // rows * entry
        top = _MARGIN + number % rows * _LINE
        draw.rectangle(
            (left, top + 2, left + _FONT_SIZE, top + _FONT_SIZE), fill=tuple(map(int, color)), outline="black"
        )
        draw.text((left + swatch, top), name, fill="black", font=_font())
    return np.asarray(picture)


def grid(
    rows: Sequence[Sequence[np.ndarray]],
    captions: Sequence[Sequence[str]] | None = None,
    min_side: int = _MIN_SIDE,
) -> np.ndarray:
    """Sets pictures side by side, row below row, with white gaps between them.

    Pictures may differ in size: a row is as high as its highest picture, a column as wide as its widest. Tiny
    ones are first enlarged by a whole factor, each pixel to a square.

    Args:
      rows: at least one row of at least one picture, uint8 [h, w, 3]; all rows have the same length.
      captions: what to write above each picture, wrapped to its column's width; a row whose captions are all "" gets
        no room for them. None for a grid without text.
      min_side: length in pixels that a picture's shorter side is enlarged to at least; 1 leaves sizes as they are.

    Returns:
      uint8 [H, W, 3].

    Raises:
      ValueError: there is no picture, rows differ in length, or captions have another arrangement than pictures.
    """
    rows = [[_enlarge(image, min_side) for image in row] for row in rows]
    columns = list(zip(*rows, strict=True))
    if not columns:
        raise ValueError("a grid needs at least one picture")
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
    """A row's pictures below their captions, all starting at the same height."""
    lines = [_wrap(caption, width) for caption, width in zip(captions, widths, strict=True)]
    most = max(map(len, lines))
    if not most:
        return list(images)
    height = most * _LINE + _MARGIN
    below = []
    for image, text, width in zip(images, lines, widths, strict=True):
        picture = Image.new("RGB", (width, height + image.shape[0]), "white")
        for number, line in enumerate(text, start=most - len(text)):
            ImageDraw.Draw(picture).text((0, number * _LINE), line, fill="black", font=_font())
        picture.paste(Image.fromarray(image), (0, height))
        below.append(np.asarray(picture))
    return below


def _wrap(text: str, width: int) -> list[str]:
    letters = max(1, int(width / _font().getlength("n")))
    return textwrap.wrap(text, letters)


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    # Pillow's own font has no letter with an accent.
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), _FONT_SIZE)


def _enlarge(image: np.ndarray, min_side: int) -> np.ndarray:
    factor = math.ceil(min_side / min(image.shape[:2]))
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
