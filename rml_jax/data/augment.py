"""Training augmentation on the host: random rescale, flip and padded crop.

Pure functions of an image and a `numpy.random.Generator`. Normalisation runs on the device, which gets the crop as
uint8, a quarter of float32's traffic, and the box of the real pixels; it fills the rest with the mean colour.
"""

import math

import numpy as np
from PIL import Image


def augment(image, rng, *, crop_size, scale, flip, contrast=0.0, brightness=0.0, noise=0.0):
    """Draws a random view of an image.

    The image is rescaled, then mirrored, then cropped or padded; only the part of the rescaled image inside the crop
    is computed. The random draws are, in this order: the scale factor, uniform in [low, high]; if `flip` is set, a
    number in [0, 1), which mirrors if it is below 0.5; the position of the crop along the rows; its position along
    the columns (both by `random_overlap`); then those of `change_light`.

    Args:
      image: uint8 [H, W, 3].
      rng: numpy.random.Generator; the result is a function of the image and the generator's state.
      crop_size: S, the side of the result.
      scale: (low, high), the range of the uniform random scale. (1.0, 1.0) keeps pixel values unchanged.
      flip: whether to mirror the image left to right with probability 0.5.
      contrast, brightness, noise: see `change_light`.

    Returns:
      Dict with `image` (uint8 [S, S, 3], 0 in the padding) and `box` (int32 [4], top, left, bottom, right of the
      real pixels in the crop, half-open).
    """
    height, width = rescaled_size(image.shape[:2], rng.uniform(*scale))
    mirror = flip and rng.random() < 0.5
    rows_from, rows_to = random_overlap(height, crop_size, rng)
    columns_from, columns_to = random_overlap(width, crop_size, rng)
    if mirror:  # The window is on the mirrored image; find its pixels in the original.
        columns_from = slice(width - columns_from.stop, width - columns_from.start)
    window = resize_window(image, (height, width), rows_from, columns_from)
    if contrast or brightness or noise:
        window = change_light(window, rng, contrast=contrast, brightness=brightness, noise=noise)
    crop = np.zeros((crop_size, crop_size, 3), np.uint8)
    crop[rows_to, columns_to] = window[:, ::-1] if mirror else window
    box = np.array([rows_to.start, columns_to.start, rows_to.stop, columns_to.stop], np.int32)
    return {"image": crop, "box": box}


def change_light(image, rng, *, contrast, brightness, noise):
    """Changes contrast and brightness at random and adds noise, the same to all three channels.

    A network that is trained from random weights otherwise recognises a kind of image by its exposure and grain
    rather than by the object (docs/method.md, Beyond the paper).

    Args:
      image: uint8 [H, W, 3].
      rng: numpy.random.Generator. There are three draws of a number each, then one of H W for the noise.
      contrast: the difference to the mean is multiplied by exp(u), u uniform in [-contrast, contrast].
      brightness: the mean is shifted by up to this fraction of 255 either way, uniformly.
      noise: greatest standard deviation of Gaussian noise, a fraction of 255. The drawn deviation is `noise` times
        the square of a uniform number, so that most images keep most of their grain.

    Returns:
      uint8 [H, W, 3].
    """
    factor = math.exp(rng.uniform(-contrast, contrast))
    shift = 255 * rng.uniform(-brightness, brightness)
    deviation = 255 * noise * rng.uniform() ** 2
    mean = image.mean(dtype=np.float32)
    changed = (image - mean) * np.float32(factor) + np.float32(mean + shift)
    changed += np.float32(deviation) * rng.standard_normal((*image.shape[:2], 1), dtype=np.float32)
    return np.clip(np.rint(changed), 0, 255).astype(np.uint8)


def rescaled_size(size, factor):
    """Returns (height, width) times a factor, rounded, both at least 1."""
    return tuple(max(1, round(side * factor)) for side in size)


def resize_window(image, size, rows, columns):
    """Resizes a window of an image (bilinear, antialiased), without computing the rest.

    The result equals the window cut from the resized image up to rounding: pillow takes the window's position as
    float32 and rounds to uint8 after each axis, so that a few values in 100 differ, by at most 2 of 255.

    Args:
      image: uint8 [H, W, 3].
      size: (height, width) of the whole resized image.
      rows: slice of the resized image's rows, 0 <= start < stop <= height.
      columns: slice of its columns.

    Returns:
      uint8 [rows, columns, 3]; a view of `image` where its size does not change.
    """
    if image.shape[:2] == tuple(size):
        return image[rows, columns]
    row_part, top, bottom = _needed(rows, image.shape[0], size[0])
    column_part, left, right = _needed(columns, image.shape[1], size[1])
    part = Image.fromarray(image[row_part, column_part])
    shape = (columns.stop - columns.start, rows.stop - rows.start)
    window = part.resize(shape, Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    return np.asarray(window)


def random_overlap(length, crop_size, rng):
    """Draws the position of an image axis relative to a crop axis, so that the longer one covers the shorter one.

    If the image is longer than the crop, the crop is a random window of it; if it is shorter, the whole image is at a
    random position in the crop. There is one draw, the offset, uniform over all positions.

    Args:
      length: pixels of the image along the axis.
      crop_size: pixels of the crop along the axis.
      rng: numpy.random.Generator.

    Returns:
      Two slices of length min(length, crop_size): the part of the image that is used, and its position in the crop.
    """
    covered = min(length, crop_size)
    offset = int(rng.integers(abs(length - crop_size) + 1))
    inside, whole = slice(offset, offset + covered), slice(0, covered)
    return (inside, whole) if length > crop_size else (whole, inside)


def _needed(window, length, resized_length):
    """Finds the pixels of an axis that a window of the resized axis depends on, and the window's position in them.

    Args:
      window: slice of the resized axis.
      length, resized_length: pixels of the axis before and after.

    Returns:
      The slice of the axis with a margin for the triangle filter on both sides, and the window's start and stop
      relative to that slice, in pixels of the axis.
    """
    ratio = length / resized_length
    start, stop = window.start * ratio, window.stop * ratio
    reach = max(1.0, ratio) + 1  # The filter reaches max(1, ratio) pixels from a sample's centre.
    first, last = max(0, math.floor(start - reach)), min(length, math.ceil(stop + reach))
    return slice(first, last), start - first, min(stop, length) - first
