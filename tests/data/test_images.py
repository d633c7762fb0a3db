"""Every kind of image that people have: what is read, and what is refused in one line."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rml_jax.data import images
from rml_jax.data.augment import augment
from rml_jax.data.images import decode_image, read_image
from rml_jax.data.masks import decode_mask
from rml_jax.utils.errors import UserError

PHOTO = np.add.outer(np.arange(24) * 3, np.arange(32) * 4)[..., None].repeat(3, axis=2).astype(np.uint8)


def encode(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def photo(mode="RGB"):
    return Image.fromarray(PHOTO).convert(mode)


def wide_ramp(least, greatest, dtype):
    return (least + RAMP * (greatest - least)).round().astype(dtype)


def tiff(values, sample_format, tags=()):
    """A TIFF of integers [H, W] or [H, W, 3], written out, as pillow writes few kinds."""
    order = ">" if values.dtype.byteorder == ">" or values.dtype == np.dtype("u1") else "<"
    height, width, *colours = values.shape
    samples, bits = (colours or [1])[0], 8 * values.dtype.itemsize
    entries = {256: width, 257: height, 259: 1, 262: 2 if colours else 1, 277: samples, 278: height}
    bits_place = 8 + values.nbytes
    entries |= {273: 8, 279: values.nbytes, 258: bits, 339: sample_format, **dict(tags)}
    body = (
        struct.pack(order + "2sHI", b"MM" if order == ">" else b"II", 42, bits_place + 6) + values.tobytes()
    )
    body += struct.pack(order + "3H", bits, bits, bits) + struct.pack(order + "H", len(entries))
    for tag, value in sorted(entries.items()):
        count = samples if tag == 258 else 1
        long = tag in (273, 279) or count == 3
        value = bits_place if count == 3 else value
        padding = "" if long else "2x"
        kind = 3 if tag == 258 or not long else 4
        body += struct.pack(order + f"HHI{'I' if long else 'H'}{padding}", tag, kind, count, value)
    return body + bytes(4)


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def deep_png(values):
    """A PNG of 16 bits per channel, which pillow doesn't write: grey and alpha, RGB or RGBA."""
    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def refusal(data, decode=decode_image, *arguments):
    with pytest.raises(UserError) as error:
        decode(data, "PATH/photo.jpg", *arguments)
    assert str(error.value).startswith("PATH/photo.jpg: ")
    assert "\n" not in str(error.value)
    return str(error.value)


@given(
    st.integers(8, 70),
    st.integers(8, 70),
    st.sampled_from([10, 75, 95]),
    st.integers(0, 2),
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=40)
def test_fast_jpeg_decoder_gives_pillows_pixels(height, width, quality, subsampling, progressive, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    options = {"quality": quality, "subsampling": subsampling, "progressive": progressive}
    data = encode(Image.fromarray(pixels), "JPEG", **options)
    assert images._decode_plain_jpeg(data) is not None
    np.testing.assert_array_equal(decode_image(data, "name"), np.array(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("RGB", "PNG"),
        ("L", "PNG"),
        ("L", "JPEG"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("RGB", "BMP"),
        ("RGB", "TIFF"),
    ],
)
def test_grey_and_cmyk_become_rgb(mode, kind):
    # Whatever the name says: all of these are called .jpg here. A grey photo looks the same in all modes.
    result = decode_image(
        encode(photo(mode), kind, **({"quality": 100} if kind == "JPEG" else {})), "photo.jpg"
    )
    assert result.dtype == np.uint8
    np.testing.assert_allclose(result.astype(int), PHOTO, atol=3)


def test_palette_becomes_its_colours():
    picture = Image.frombytes("P", (8, 8), bytes([0, 1] * 32))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    np.testing.assert_array_equal(
        decode_image(encode(picture, "PNG"), "n")[0, :2], [[255, 0, 0], [0, 0, 255]]
    )


# --- Values of more than 8 bits ---

RAMP = np.linspace(0, 1, 24 * 32).reshape(24, 32)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(
    ("least", "greatest", "dtype"),
    [(0, 65535, np.uint16), (0, 4095, np.uint16), (0, 1023, np.uint16), (2000, 40_000, np.uint16)],
)
def test_grey_of_a_10_to_16_bit_camera_fills_the_range(kind, least, greatest, dtype):
    grey = decode_image(encode(Image.fromarray(wide_ramp(least, greatest, dtype)), kind), "name")[..., 0]
    np.testing.assert_allclose(grey, 255 * RAMP, atol=1.3)


@pytest.mark.parametrize(("least", "greatest"), [(0, 200_000), (-1000, 3000), (-30_000, -20_000)])
def test_32_bit_grey_and_negative_values_never_wrap(least, greatest):
    grey = decode_image(encode(Image.fromarray(wide_ramp(least, greatest, np.int32)), "TIFF"), "n")[..., 0]
    np.testing.assert_allclose(grey, 255 * RAMP, atol=1.3)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_8_bit_values_in_a_wider_file_stay_as_they_are(dtype):
    data = encode(Image.fromarray(PHOTO[..., 0].astype(dtype)), "TIFF")
    np.testing.assert_array_equal(decode_image(data, "name"), PHOTO)


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i2", ">i2", "<u4", "<i4", ">i4", "i1"])
def test_tiff_of_every_kind_of_integer(dtype):
    """Of unsigned 32 bits, pillow makes negative numbers, of signed 8 bits positive ones."""
    information = np.iinfo(dtype)
    values = (information.min + RAMP * (int(information.max) - information.min)).astype(dtype)
    grey = decode_image(tiff(values, 2 if "i" in dtype else 1), "name")[..., 0]
    np.testing.assert_allclose(grey, 255 * RAMP, atol=1.3)


def test_range_that_a_tiff_declares():
    values = (1000 * RAMP).astype("<u2")
    grey = decode_image(tiff(values, 1, {281: 4095}), "name")[..., 0]
    np.testing.assert_array_equal(grey, values.astype(int) * 255 // 4095)


@pytest.mark.parametrize("is_stretched", [True, False])
def test_significant_bits_that_a_png_declares(is_stretched):
    """By the standard 12 bits are stretched to 16; some programs leave them as they are."""
    values = (2000 * RAMP).astype(np.uint16)
    stored = values * 16 + (values >> 8) if is_stretched else values
    data = encode(Image.fromarray(stored), "PNG")
    data = data[:33] + png_chunk(b"sBIT", b"\x0c") + data[33:]
    np.testing.assert_allclose(decode_image(data, "n")[..., 0], values * (255 / 4095), atol=1.3)


@pytest.mark.parametrize("greatest", [65535, 4095, 255])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_colours_of_a_png(greatest, channels):
    """Pillow keeps their upper byte alone: 12 bits would be nearly black."""
    colours = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=-1)
    if channels == 2:
        colours = colours[..., [0, 0, 0]]
    stored = (colours[..., : channels - 1 + channels % 2] * greatest).astype(np.uint16)
    if channels % 2 == 0:
        stored = np.concatenate([stored[..., : channels - 1], np.full((*RAMP.shape, 1), 65535)], axis=-1)
    np.testing.assert_allclose(decode_image(deep_png(stored), "name"), 255 * colours, atol=1.3)


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_colours_of_a_tiff(order):
    colours = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=-1)
    np.testing.assert_allclose(
        decode_image(tiff((colours * 1023).astype(order + "u2"), 1), "name"), 255 * colours, atol=1.3
    )


def test_a_range_that_had_to_be_guessed_is_reported_once(capsys, monkeypatch):
    monkeypatch.setattr(images, "_scaling_reported", False)
    for name in ("a.tif", "b.tif"):
        decode_image(encode(Image.fromarray(wide_ramp(0, 4095, np.uint16)), "TIFF"), name)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("a.tif: found values from 0 to 4095")


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_lie_on_white(mode):
    picture = photo(mode)
    alpha = np.zeros((24, 32), np.uint8)
    alpha[:, 16:] = 255
    picture.putalpha(Image.fromarray(alpha))
    result = decode_image(encode(picture, "PNG"), "name")
    assert (result[:, :16] == 255).all()
    np.testing.assert_array_equal(result[:, 16:], PHOTO[:, 16:])


def orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def test_exif_orientation_counts_where_it_is_asked_for():
    data = encode(photo(), "JPEG", quality=100, subsampling=0, exif=orientation(6))
    stored, upright = decode_image(data, "name"), decode_image(data, "name", upright=True)
    np.testing.assert_allclose(stored.astype(int), PHOTO, atol=3)
    np.testing.assert_array_equal(upright, np.rot90(stored, -1))


@pytest.mark.parametrize("size", [0, 1000, 4500, 60_000])
@pytest.mark.parametrize("marker", [b"\xed", b"\xe2", b"\xfe"])
def test_exif_behind_segments_of_any_length(size, marker):
    data = encode(photo(), "JPEG", quality=100, subsampling=0)
    exif = b"\xff\xe1" + segment(orientation(6).tobytes())
    before = b"\xff" + marker + segment(b"of another program" + bytes(size))
    turned = decode_image(data[:2] + before + exif + data[2:], "name", upright=True)
    np.testing.assert_array_equal(turned, np.rot90(decode_image(data, "name"), -1))


def segment(content):
    return struct.pack(">H", len(content) + 2) + content


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_orientation_in_every_format(kind, value):
    options = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "WEBP": {"lossless": True},
        "AVIF": {"quality": 100},
    }
    data = encode(photo(), kind, exif=orientation(value), **options.get(kind, {}))
    upright = [
        PHOTO, PHOTO[:, ::-1], np.rot90(PHOTO, 2), PHOTO[::-1], PHOTO.swapaxes(0, 1), np.rot90(PHOTO, -1),
        np.rot90(PHOTO, 2).swapaxes(0, 1), np.rot90(PHOTO),
    ][value - 1]  # fmt: skip
    found = decode_image(data, "name", upright=True)
    assert found.shape == upright.shape
    np.testing.assert_allclose(found.astype(int), upright, atol=6)


def test_exif_behind_the_pixels_of_a_png():
    data = encode(photo(), "PNG")
    exif = png_chunk(b"eXIf", orientation(6).tobytes().removeprefix(b"Exif\0\0"))
    data = data[:-12] + exif + data[-12:]
    np.testing.assert_array_equal(decode_image(data, "name", upright=True), np.rot90(PHOTO, -1))


def test_orientation_of_deep_images():
    grey = (PHOTO[..., 0].astype(np.uint16) + 1) * 100
    turned = decode_image(encode(Image.fromarray(grey), "PNG", exif=orientation(6)), "n", upright=True)
    np.testing.assert_array_equal(
        turned, np.rot90(decode_image(encode(Image.fromarray(grey), "PNG"), "n"), -1)
    )


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0XXXXXX", b"Exif\0\0"])
def test_broken_exif_data_is_ignored(exif):
    data = encode(photo(), "JPEG", quality=100, exif=exif)
    np.testing.assert_array_equal(decode_image(data, "n", upright=True), decode_image(data, "n"))


@pytest.mark.parametrize("value", [0, 9, 300])
def test_orientations_that_do_not_exist_are_ignored(value):
    data = encode(photo(), "PNG", exif=orientation(value))
    np.testing.assert_array_equal(decode_image(data, "name", upright=True), PHOTO)


@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_several_frames_are_refused(kind, upright):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "green")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert "found 3 frames, expected a still image" in refusal(data, decode_image, upright)
    assert "found 3 frames" in refusal(data, decode_mask, (1,))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_single_frame_of_these_formats_is_read(kind):
    data = encode(Image.new("RGB", (16, 16), "white"), kind, save_all=True)
    assert decode_image(data, "name", upright=True).min() >= 250


def test_phone_pictures_of_several_parts_give_the_first():
    data = encode(photo(), "MPO", save_all=True, append_images=[Image.new("RGB", (32, 24))], quality=100)
    np.testing.assert_allclose(decode_image(data, "name").astype(int), PHOTO, atol=5)


@pytest.mark.parametrize("keep", [0, 1, 20, 60, -30])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_files_are_refused(kind, keep):
    message = refusal(encode(photo(), kind)[:keep])
    assert message.endswith("expected a whole JPEG or PNG image")
    assert ("an empty file" in message) == (keep == 0)


def test_whatever_pillow_raises_names_the_file():
    """Broken headers give exceptions of many kinds, this one NotImplementedError."""
    data = bytearray(encode(photo(), "DDS"))
    data[80:84] = bytes(4)  # The flags of its pixel format.
    assert "expected a whole JPEG or PNG image" in refusal(bytes(data))


def test_text_is_no_picture():
    assert "found no image" in refusal(b"<html>404 Not Found</html>")


def test_floating_point_pictures_are_refused():
    assert "floating-point" in refusal(encode(Image.new("F", (16, 16)), "TIFF"))


@pytest.mark.parametrize("size", [(1, 1), (7, 500)])
def test_tiny_pictures_are_refused(size):
    assert f"found {size[0]}x{size[1]} pixels, expected at least 8" in refusal(
        encode(Image.new("RGB", size), "PNG")
    )


def test_long_pictures_are_read_and_cropped():
    image = decode_image(encode(Image.new("RGB", (20_000, 100), "red"), "JPEG"), "name")
    assert image.shape == (100, 20_000, 3)
    view = augment(image, np.random.default_rng(0), crop_size=64, scale=(0.5, 2.0), flip=True)
    assert (view["image"][..., 0] >= 250).any()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_decompression_bombs_are_refused_undecoded(kind, monkeypatch):
    data = encode(Image.new("RGB", (300, 300)), kind)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    monkeypatch.setattr(images, "MAX_PIXELS", 20_000)
    assert "exceeds limit of 20000 pixels" in refusal(data)


@pytest.mark.parametrize(
    "suffix", ["jpg", "jpeg", "jfif", "jpe", "png", "webp", "avif", "jp2", "gif", "tif", "bmp", "tga", "ppm"]
)
def test_suffixes_that_are_read(suffix):
    assert f".{suffix}" in images.image_suffixes()


@pytest.mark.parametrize("suffix", ["txt", "csv", "pdf", "eps", "wmf", "mpg", "h5", ""])
def test_suffixes_that_are_not_read(suffix):
    assert f".{suffix}" not in images.image_suffixes()


@pytest.mark.parametrize("suffix", [".avif", ".jp2", ".tga", ".ppm", ".qoi", ".pcx", ".sgi", ".dds", ".ico"])
def test_every_format_is_read(suffix, tmp_path):
    photo().resize((32, 32)).save(tmp_path / f"photo{suffix}")
    found = read_image(tmp_path / f"photo{suffix}", upright=True)
    np.testing.assert_allclose(found.astype(int), np.array(photo().resize((32, 32))), atol=12)


@pytest.mark.parametrize(
    ("start", "package"), [(b"\0\0\0\x18ftypheic", "pillow-heif"), (b"\xff\x0a", "pillow-jxl-plugin")]
)
def test_heic_and_jpeg_xl_without_plugin_name_the_package(start, package):
    assert f"pip install {package}" in refusal(start + bytes(50))


def test_postscript_is_not_run():
    assert "found no image" in refusal(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\nshowpage\n")
