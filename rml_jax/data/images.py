"""Reading of images from files and bytes.

The format is detected by the content, not by the file's name: JPEG, PNG, WebP, AVIF, GIF, TIFF and every other raster
format that pillow reads, and HEIC and JPEG XL if their pillow plugin is installed. Grey, palette and CMYK images are
converted to RGB, transparent pixels are composited onto white, and values of more than 8 bits are scaled to 0..255
(`to_uint8`). Broken files, files of several frames, sides under 8 pixels and decompression bombs are refused.
"""

import functools
import importlib
import io
import re
import struct
import sys
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps

from rml_jax.utils.errors import UserError

MIN_SIDE = 8
# 600 MB decoded. This is pillow's own limit, twice the value at which it warns.
MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS
_EXPECTED = "expected a whole JPEG or PNG image"
# Formats with several images in one file, of which viewers show the first or primary one: phones' photographs with
# depth maps and previews (MPO, HEIF), and the layers of a PSD.
_STILL_FORMATS = ("MPO", "HEIF", "PSD")
# Formats registered by pillow that are not raster images: vector graphics, which need an external program or Windows,
# and formats that pillow only recognises and can't decode.
_EXCLUDED_FORMATS = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}
# Packages that add a format to pillow, HEIC and JPEG XL, and the function that registers it, if it must be called.
_PLUGINS = {"pillow_heif": "register_heif_opener", "pillow_jxl": None}
PLUGIN_PACKAGES = {
    ".heic": "pillow-heif",
    ".heif": "pillow-heif",
    ".hif": "pillow-heif",
    ".jxl": "pillow-jxl-plugin",
}
"""Suffix that pillow alone doesn't read -> package that reads it."""
# The first bytes of files that only a plugin reads, their format, and the package to install.
_PLUGIN_FILES = (
    (re.compile(rb".{4}ftyp(heic|heix|hevc|hevx|heim|heis|mif1|msf1)", re.DOTALL), "HEIC", "pillow-heif"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "JPEG XL", "pillow-jxl-plugin"),
)
# TIFF's tags.
_BITS_PER_SAMPLE, _SAMPLE_FORMAT = 258, 339
_MAX_SAMPLE_VALUE, _S_MAX_SAMPLE_VALUE = 281, 341
# Pillow's names for layouts of 16-bit colours: the channels, and big-endian, little-endian or this machine's order.
_DEEP_COLOURS = re.compile("(RGB|RGBX|RGBA);16([BLN])")


@functools.cache
def readable_formats():
    """Returns pillow's names of the raster formats that it can open here, ("JPEG", ...)."""
    Image.init()
    for package, register in _PLUGINS.items():
        try:
            module = importlib.import_module(package)
        except ImportError:
            continue
        if register:
            getattr(module, register)()
    return tuple(name for name in Image.ID if name in Image.OPEN and name not in _EXCLUDED_FORMATS)


@functools.cache
def image_suffixes():
    """Returns the suffixes of readable files, in lower case with the dot, as a sorted tuple of str.

    These are all suffixes that pillow registers for a format of `readable_formats`.
    """
    formats = readable_formats()
    return tuple(sorted(s for s, name in Image.registered_extensions().items() if name in formats))


def read_image(path, upright=False, min_side=MIN_SIDE):
    """Reads and decodes an image file; see `decode_image`.

    Raises:
      UserError: also if the file can't be read.
    """
    return decode_image(read_bytes(path), path, upright, min_side)


def decode_image(data, name, upright=False, min_side=MIN_SIDE):
    """Decodes an image.

    Args:
      data: the file's bytes.
      name: the path, for error messages.
      upright: whether to apply the EXIF orientation, as viewers do. VOC's masks and COCO's polygons were drawn on the
        pixels as stored. Pillow always applies the orientation of a TIFF.
      min_side: smallest height and width, in pixels.

    Returns:
      uint8 [H, W, 3], RGB in 0..255.

    Raises:
      UserError: if it is truncated or not an image, has several frames, has a side below min_side or has more than
        MAX_PIXELS.
    """
    pixels = None
    if data.startswith(b"\xff\xd8"):
        header = open_image(data, name, load=False)  # The fast decoder reads some files that pillow refuses.
        if not upright or _orientation(header) == 1:
            pixels = _decode_plain_jpeg(data)
    if pixels is None:
        pixels = to_rgb(open_image(data, name), name, upright=upright, data=data)
    if min(pixels.shape[:2]) < min_side:
        found = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise UserError(f"{name}: found {found} pixels, expected at least {min_side} on each side")
    return pixels


def read_bytes(path):
    """Returns the bytes of a file. Raises UserError if it can't be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}, {_EXPECTED}") from error


def open_image(data, name, load=True):
    """Opens an image file that must hold a single frame.

    Args:
      data: the file's bytes.
      name: the path, for error messages.
      load: whether to decode it here rather than on first use, so that the error for a truncated file has its name.

    Returns:
      The pillow image.

    Raises:
      UserError: if it is not a readable image, is broken or has several frames.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=readable_formats())
        frames = getattr(image, "n_frames", 1)
        if load:
            image.load()
    # Pillow's message "cannot identify" has the buffer's name only.
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{name}: found {_describe(data)}, {_EXPECTED}") from error
    # Pillow has no common exception class: broken headers raise anything from SyntaxError to NotImplementedError.
    except Exception as error:
        raise UserError(f"{name}: {error}, {_EXPECTED}") from error
    _check_still(image, frames, name)
    return image


def to_rgb(image, name, *, upright=False, data=b""):
    """Returns the pixels of a pillow image of any mode as RGB.

    Args:
      image: pillow image.
      name: the path, for error messages.
      upright: whether to apply the EXIF orientation.
      data: bytes of the file that it was opened from, for the declared range of its values and the lower half of
        16-bit colours, which pillow drops; b"" if there is no file.

    Returns:
      uint8 [H, W, 3].

    Raises:
      UserError: for several frames and for floating-point values, whose range is unknown.
    """
    _check_still(image, getattr(image, "n_frames", 1), name)
    if image.mode == "F":
        raise UserError(f"{name}: found an image of floating-point numbers, {_EXPECTED}")
    orientation = _orientation(image) if upright else 1
    values = wide_values(image, data)
    if values is not None:
        rgb = Image.fromarray(to_uint8(values, name, _declared_greatest(image, data, values))).convert("RGB")
        if "A" in image.getbands():
            rgb.putalpha(image.getchannel("A"))
    else:
        rgb = image
    if rgb.has_transparency_data:
        rgb = rgb.convert("RGBA")
        rgb = Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgb)
    rgb = rgb.convert("RGB")
    if orientation != 1:
        rgb.info.clear()  # The rest of the EXIF data may be broken.
        rgb.getexif()[ExifTags.Base.Orientation] = orientation
        ImageOps.exif_transpose(rgb, in_place=True)
    return np.array(rgb)


def to_uint8(values, name, declared=None):
    """Scales integers of any width to 0..255.

    The range that is mapped to 0..255 is 0 to `declared` if that is known and no value lies outside; else 0..255 if
    all values fit; else the least to the greatest value of the image, which is reported once per process on standard
    error.

    Args:
      values: integers [H, W] or [H, W, 3].
      name: the path, for messages.
      declared: the greatest possible value by the file's metadata; None if unknown.

    Returns:
      uint8, of the shape of `values`, rounded down.

    Raises:
      UserError: if values have more than 53 bits.
    """
    least, greatest = int(values.min()), int(values.max())
    if max(-least, greatest) >= 2**53:
        raise UserError(f"{name}: found values from {least} to {greatest}, expected at most 53 bits")
    if declared and least >= 0 and greatest <= declared:
        least, greatest = 0, declared
    elif least >= 0 and greatest <= 255:
        return values.astype(np.uint8)
    else:
        _report_scaling(name, least, greatest)
    return ((values.astype(np.int64) - least) * 255 // max(greatest - least, 1)).astype(np.uint8)


_scaling_reported = False


def _report_scaling(name, least, greatest):
    global _scaling_reported
    if not _scaling_reported:
        _scaling_reported = True
        print(
            f"{name}: found values from {least} to {greatest}, and no word on their range in the file: scaled to "
            "0..255 by its own least and greatest value, as are all images of this kind",
            file=sys.stderr,
        )


def _check_still(image, frames, name):
    if frames > 1 and image.format not in _STILL_FORMATS:
        raise UserError(f"{name}: found {frames} frames, expected a still image")


def _describe(data):
    """Describes a file that pillow can't identify."""
    if not data:
        return "an empty file"
    for start, kind, package in _PLUGIN_FILES:
        if start.match(data):
            return f"{kind}, which needs `pip install {package}`"
    return "no image"


def _decode_plain_jpeg(data):
    """Decodes a valid colour JPEG in half of pillow's time, with bit-identical pixels; None for all other files."""
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
        if colour != "YCbCr" or height * width > MAX_PIXELS:
            return None
        return simplejpeg.decode_jpeg(data)
    except ValueError:
        return None  # Pillow raises the error, or ignores a harmless warning.


def _orientation(image):
    """Returns the EXIF orientation of a pillow image, 1..8; 1 if there is none or the EXIF data is broken."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    # Pillow raises many kinds of exceptions for broken EXIF data, which viewers ignore.
    except Exception:
        return 1
    return orientation if orientation in range(1, 9) else 1


def wide_values(image, data):
    """Returns the values stored in an image's file if they differ from the 8 bits per channel that pillow returns.

    Args:
      image, data: see `to_rgb`.

    Returns:
      Integers [H, W] or [H, W, 3]; None if pillow's values are the file's.
    """
    tags = getattr(image, "tag_v2", {})
    is_signed = tags.get(_SAMPLE_FORMAT, (1,))[0] == 2
    if image.mode == "I":  # pillow's only 32-bit integer mode
        values = np.asarray(image)
        is_unsigned = bits_per_sample(image, data) == 32 and not is_signed
        return values.view(np.uint32) if is_unsigned else values
    if image.mode.startswith("I;16"):
        return np.asarray(image)
    if image.mode == "L" and is_signed:
        return np.asarray(image).view(np.int8)
    lower = _lower_bytes(data, image) if data and bits_per_sample(image, data) == 16 else None
    if lower is None:
        return None
    upper = np.asarray(image.convert("RGB") if image.mode == "RGB" else image)[..., :3]
    return upper.astype(np.int32) << 8 | lower


def bits_per_sample(image, data):
    """Returns the number of bits per value in a PNG or TIFF; 8 for other formats.

    Args:
      image, data: see `to_rgb`.
    """
    if image.format == "PNG" and data:
        return data[24]
    return max(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,)))


def _lower_bytes(data, image):
    """Returns the lower 8 bits of the colours of a 16-bit PNG or TIFF, [H, W, 3], or None for an unusual layout.

    Pillow keeps the upper 8 bits, the first byte of big-endian values. Decoding with the other byte order keeps the
    lower 8 bits instead.
    """
    second = Image.open(io.BytesIO(data), formats=(image.format,))
    tiles = []
    for tile in second.tile:
        rawmode, *rest = (tile.args,) if isinstance(tile.args, str) else tile.args
        swapped = "RGBA" if rawmode == "LA;16B" else _swap_bytes(rawmode)
        if swapped is None:
            return None
        tiles.append(tile._replace(args=swapped if isinstance(tile.args, str) else (swapped, *rest)))
    second.tile = tiles
    pixels = np.asarray(second)
    # Both bytes of grey, then both of alpha.
    return pixels[..., [1, 1, 1]] if swapped == "RGBA" else pixels[..., :3]


def _swap_bytes(rawmode):
    """Returns pillow's name for a layout of 16-bit colours with the byte order swapped; None for other layouts."""
    match = _DEEP_COLOURS.fullmatch(rawmode)
    if not match:
        return None
    is_little = match[2] == "L" or (match[2] == "N" and sys.byteorder == "little")
    return f"{match[1]};16{'B' if is_little else 'L'}"


def _declared_greatest(image, data, values):
    """Returns the greatest possible value of a file of wide values by its metadata, or None.

    16-bit files often hold 10- to 14-bit camera values, so the number of bits gives the range only if it is below 16.
    """
    if image.format == "PPM":
        return 65535  # Pillow has scaled the values by the file's own maximum.
    if image.format == "PNG" and (bits := _significant_bits(data)):
        # By the standard, values are scaled to 16 bits, but some programs store them unscaled.
        return 2**bits - 1 if values.max() < 2**bits else 65535
    tags = getattr(image, "tag_v2", {})
    for tag in (_MAX_SAMPLE_VALUE, _S_MAX_SAMPLE_VALUE):
        if tag in tags:
            return int(np.max(tags[tag]))
    bits = bits_per_sample(image, data)
    return 2**bits - 1 if bits < 16 else None


def _significant_bits(data):
    """Returns the number of significant bits in a PNG's sBIT chunk, the maximum over channels; 0 if it has none."""
    place = 8
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IDAT":
            break
        if kind == b"sBIT":
            return max(data[place + 8 : place + 8 + length], default=0)
        place += 12 + length
    return 0
