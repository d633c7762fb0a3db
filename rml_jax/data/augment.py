"""Training augmentation on the host: random rescale, flip and padded crop (METHOD.md section 5).

Pure functions of an image and a `numpy.random.Generator`. Normalisation is left to the device: it gets the
crop as bytes, a quarter of float32's traffic, and fills the padding with the mean colour by means of the box.
"""

import numpy as np
from PIL import Image


def augment(image, rng, *, crop_size, scale, flip):
    """One random view of an image (METHOD.md section 5).

    Args:
      image: uint8 [H, W, 3].
      rng: numpy.random.Generator; the result is a function of the image and the generator's state.
      crop_size: S, the side of the result.
      scale: (low, high), the range of the uniform random scale. (1.0, 1.0) leaves every pixel value as it is.
      flip: whether to mirror the image left to right with probability 0.5.

    Returns:
      Dict with `image` (uint8 [S, S, 3], 0 where there is no image) and `box` (int32 [4], top, left, bottom,
      right of the real pixels in the crop, half-open).
    """
    image = random_rescale(image, rng, scale)
    if flip:
        image = random_flip(image, rng)
    return random_crop(image, rng, crop_size)


def random_rescale(image, rng, scale):
    """The image resized by a factor uniform in [low, high] (bilinear, antialiased; METHOD.md section 5).

    Args:
      image: uint8 [H, W, 3].
      rng: numpy.random.Generator.
      scale: (low, high), 0 < low <= high.

    Returns:
      uint8 [H', W', 3], both sides rounded and at least 1; `image` itself where its size does not change.
    """
    factor = rng.uniform(*scale)
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    if (height, width) == image.shape[:2]:
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def random_flip(image, rng):
    """The image [H, W, 3], mirrored left to right with probability 0.5 (METHOD.md section 5)."""
    return image[:, ::-1] if rng.random() < 0.5 else image


def random_crop(image, rng, crop_size):
    """A random square of the image, padded with zeros where the image is smaller (METHOD.md section 5).

    Per axis: where the image is larger than the crop, the crop is a random window of it; where it is smaller,
    the image lands whole at a random place in the crop.

    Args:
      image: uint8 [H, W, 3].
      rng: numpy.random.Generator.
      crop_size: S.

    Returns:
      Dict with `image` (uint8 [S, S, 3]) and `box` (int32 [4], top, left, bottom, right of the real pixels,
      half-open).
    """
    rows_from, rows_to = random_overlap(image.shape[0], crop_size, rng)
    columns_from, columns_to = random_overlap(image.shape[1], crop_size, rng)
    crop = np.zeros((crop_size, crop_size, 3), np.uint8)
    crop[rows_to, columns_to] = image[rows_from, columns_from]
    box = np.array([rows_to.start, columns_to.start, rows_to.stop, columns_to.stop], np.int32)
    return {"image": crop, "box": box}


def random_overlap(length, crop_size, rng):
    """A random placement of an image axis over a crop axis that covers the shorter one wholly.

    Args:
      length: pixels of the image along the axis.
      crop_size: pixels of the crop along the axis.
      rng: numpy.random.Generator.

    Returns:
      Two slices of length min(length, crop_size): the part of the image that is used, and where it lands in
      the crop.
    """
    covered = min(length, crop_size)
    offset = int(rng.integers(abs(length - crop_size) + 1))
    inside, whole = slice(offset, offset + covered), slice(0, covered)
    return (inside, whole) if length > crop_size else (whole, inside)
