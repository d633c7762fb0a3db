"""Pictures and masks from files and bytes, with every way in which a file can be no photograph.

What is read, whatever the file's name says: JPEG, PNG, WebP, BMP, GIF, TIFF and the rest that pillow knows. Grey,
palette and CMYK become RGB, 16-bit grey is divided to 8 bits, transparent pixels lie on white. Refused: broken files,
animations (which frame?), sides under 8 pixels (nothing to segment) and decompression bombs.
"""

import io
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from rml_jax.labels import IGNORE
from rml_jax.utils.errors import UserError

MIN_SIDE = 8
# 600 MB decoded. Pillow's own limit, which it applies at twice the value that it warns at.
MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS
_EXPECTED = "expected a whole JPEG or PNG picture"
# Several photographs in one file: the first is the one that every viewer shows.
_STILL_FORMATS = ("MPO",)


def read_image(path, upright=False, min_side=MIN_SIDE):
    """`decode_image` of a file.

    Raises:
      UserError: also if the file can't be read.
    """
    return decode_image(_read(path), path, upright, min_side)


def read_mask(path, mask_values):
    """`decode_mask` of a file.

    Raises:
      UserError: also if the file can't be read.
    """
    return decode_mask(_read(path), path, mask_values)


def decode_image(data, name, upright=False, min_side=MIN_SIDE):
    """The photograph in a picture file.

    Args:
      data: the file's bytes.
      name: what errors call it, a path.
      upright: whether to apply an EXIF orientation, as viewers do. VOC's masks and COCO's polygons were drawn on the
        pixels as stored.
      min_side: least height and width, in pixels.

    Returns:
      uint8 [H, W, 3], RGB in 0..255, a function of the bytes.

    Raises:
      UserError: if it is truncated or no picture, animated, smaller than min_side on a side or above MAX_PIXELS.
    """
    image = None if upright and _orientation(data) else _decode_plain_jpeg(data)
    if image is None:
        picture = _open(data, name)
        image = np.array(to_rgb(ImageOps.exif_transpose(picture) if upright else picture, name))
    if min(image.shape[:2]) < min_side:
        found = f"{image.shape[1]}x{image.shape[0]}"
        raise UserError(f"{name}: found {found} pixels, expected at least {min_side} on each side")
    return image


def decode_mask(data, name, mask_values):
    """A mask with classes renumbered 1..C.

    Args:
      data: the bytes of a palette or grey picture whose pixel values are class numbers.
      name: what errors call it, a path.
      mask_values: the number of each of the C classes in the file, 1..254.

    Returns:
      uint8 [H, W]: 0 background, 1..C in the order of `mask_values`, 255 ignore.

    Raises:
      UserError: if it can't be decoded, holds colours instead of class numbers, or has a value that is neither 0 nor
        255 nor one of `mask_values`.
    """
    picture = _open(data, name)
    if picture.mode not in ("P", "L"):
        raise UserError(
            f"{name}: found picture mode {picture.mode}, expected P (palette) or L (grey) with class numbers"
        )
    stored = np.array(picture)
    known = {0, *mask_values, IGNORE}
    unknown = set(np.flatnonzero(np.bincount(stored.ravel())).tolist()) - known
    if unknown:
        raise UserError(f"{name}: found mask value {min(unknown)}, expected one of {sorted(known)}")
    renumber = np.zeros(256, np.uint8)
    renumber[list(mask_values)] = np.arange(1, len(mask_values) + 1)
    renumber[IGNORE] = IGNORE
    return renumber[stored]


def presence(mask, num_classes):
    """Which classes occur in a mask.

    Args:
      mask: uint8 [H, W], 0 background, 1..C classes, 255 ignore.
      num_classes: C.

    Returns:
      float32 [C], 1 for each class with at least one pixel, else 0.
    """
    counts = np.bincount(mask.ravel(), minlength=num_classes + 1)
    return (counts[1 : num_classes + 1] > 0).astype(np.float32)


def check_same_size(mask, image, name):
    """Raises UserError, which calls the mask `name`, if mask [H, W] and image [H, W, 3] differ in size."""
    if mask.shape != image.shape[:2]:
        found, expected = (f"{width}x{height}" for height, width in (mask.shape, image.shape[:2]))
        raise UserError(f"{name}: found a mask of {found} pixels, expected {expected} like its image")


def _read(path):
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}, {_EXPECTED}") from error


def _decode_plain_jpeg(data):
    """RGB of a sound colour JPEG, bit by bit what pillow makes of it in half the time, or None for all else."""
    if not data.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
        if colour != "YCbCr" or height * width > MAX_PIXELS:
            return None
        return simplejpeg.decode_jpeg(data)
    except ValueError:
        return None  # Pillow says what is wrong, or that a warning was harmless.


def _orientation(data):
    """Whether the EXIF data turns the picture."""
    if b"Exif" not in data[:4096]:
        return False
    return _open(data, "EXIF", load=False).getexif().get(0x0112, 1) != 1


def _open(data, name, load=True):
    """The pillow picture. Decoding here, not on first use, so that a truncated file fails with its name."""
    try:
        picture = Image.open(io.BytesIO(data))
        if load:
            picture.load()
    # Pillow's "cannot identify" names the buffer.
    except Image.UnidentifiedImageError as error:
        found = "an empty file" if not data else "no picture"
        raise UserError(f"{name}: found {found}, {_EXPECTED}") from error
    # It has no common exception: broken headers give anything from SyntaxError to NotImplementedError.
    except Exception as error:
        raise UserError(f"{name}: {error}, {_EXPECTED}") from error
    return picture


def to_rgb(picture, name):
    """A pillow picture of any mode as RGB; see this module's docstring.

    Raises:
      UserError: for an animation and for floating-point numbers, which are no colours.
    """
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format not in _STILL_FORMATS:
        raise UserError(f"{name}: found {frames} frames, expected a still picture")
    if picture.mode.startswith("I;16") or picture.mode == "I":
        return Image.fromarray((np.asarray(picture) // 257).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise UserError(f"{name}: found a picture of floating-point numbers, {_EXPECTED}")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")
