"""Draws masks from the outlines in COCO's annotation files: polygons, run lengths and compressed run lengths."""

import numpy as np
from pycocotools import mask as coco_mask

from rml_jax.utils.errors import UserError

# In pixels. pycocotools takes memory by the length of an outline.
_LARGEST_COORDINATE = 100_000


def has_outline(segmentation):
    """Returns whether an annotation's `segmentation` holds anything: tools write None, [] or [[]] for none."""
    return any(segmentation) if isinstance(segmentation, list) else bool(segmentation)


def draw_mask(objects, size, name):
    """Draws the class of each pixel.

    Args:
      objects: list of (class number, segmentation as in COCO's files, area or None, whether it is a crowd).
      size: (height, width).
      name: path of the image, for error messages.

    Returns:
      uint8 [H, W]: crowds first, then objects from the largest to the smallest, each over what was there. Areas that
      are None are counted.

    Raises:
      UserError: if an outline is in none of COCO's forms.
    """
    mask = np.zeros(size, np.uint8)
    try:
        keys = [
            (not is_crowd, -(int(_pixels(segmentation, size).sum()) if area is None else area))
            for _, segmentation, area, is_crowd in objects
        ]
        for index in sorted(range(len(objects)), key=keys.__getitem__):
            number, segmentation, _, _ = objects[index]
            mask[_pixels(segmentation, size)] = number
    # pycocotools raises bare Exception.
    except Exception as error:
        raise UserError(
            f"{name}: found an outline that can't be drawn ({error}), expected polygons or run lengths"
        ) from error
    return mask


def _pixels(segmentation, size):
    """bool [H, W] of an outline in any of COCO's three forms."""
    if isinstance(segmentation, dict):
        return _decode_run_lengths(segmentation, size)
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    for polygon in polygons:
        coordinates = np.asarray(polygon, np.float64)
        if coordinates.ndim != 1 or coordinates.size < 6 or coordinates.size % 2:
            # Of 4 numbers pycocotools makes a box.
            raise ValueError(f"a polygon of {coordinates.size} numbers instead of 6, 8, ... in one list")
        if not (np.abs(coordinates) <= _LARGEST_COORDINATE).all():  # NaN is not, either.
            raise ValueError(f"coordinates that are not within {_LARGEST_COORDINATE}")
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *size))).astype(bool)


def _decode_run_lengths(code, size):
    """bool [H, W] of run lengths, column by column, zeros first.

    pycocotools leaves the pixels behind the last run uninitialised.
    """
    counts = code["counts"]
    if isinstance(counts, str | bytes):
        counts = _parse_counts(counts.encode() if isinstance(counts, str) else counts)
    if "size" in code and list(code["size"]) != list(size):
        raise ValueError(f"run lengths for height and width {code['size']!r:.60} instead of {list(size)}")
    if not all(isinstance(count, int) and count >= 0 for count in counts) or sum(counts) != size[0] * size[1]:
        raise ValueError(f"run lengths that are not whole numbers with the sum {size[0]} x {size[1]}")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size[::-1]).T


def _parse_counts(text):
    """The run lengths in COCO's compressed form, a list of int.

    Each number is written in groups of 5 bits from the lowest, one to a character from "0" to "o": bit 5 says that
    another follows, bit 4 of the last is the sign. From the fourth on, numbers are differences to the one two before.
    """
    counts, value, shift = [], 0, 0
    for byte in text:
        group = byte - 48
        if not 0 <= group < 64:
            raise ValueError(f"the character {chr(byte)!r} in compressed run lengths")
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("compressed run lengths that are cut off")
    return counts
