"""Every kind of picture that people have: what is read, and what is refused in one line."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rml_jax.data import images
from rml_jax.data.augment import augment
from rml_jax.data.images import decode_image, decode_mask
from rml_jax.utils.errors import UserError

PHOTO = np.add.outer(np.arange(24) * 3, np.arange(32) * 4)[..., None].repeat(3, axis=2).astype(np.uint8)


def encode(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def photo(mode="RGB"):
    return Image.fromarray(PHOTO).convert(mode)


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


def test_16_bit_grey_is_scaled_and_not_clipped():
    data = encode(Image.fromarray(PHOTO[..., 0].astype(np.uint16) * 257), "PNG")
    np.testing.assert_array_equal(decode_image(data, "name"), PHOTO)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_lie_on_white(mode):
    picture = photo(mode)
    alpha = np.zeros((24, 32), np.uint8)
    alpha[:, 16:] = 255
    picture.putalpha(Image.fromarray(alpha))
    result = decode_image(encode(picture, "PNG"), "name")
    assert (result[:, :16] == 255).all()
    np.testing.assert_array_equal(result[:, 16:], PHOTO[:, 16:])


def test_exif_orientation_counts_where_it_is_asked_for():
    exif = Image.Exif()
    exif[0x0112] = 6  # To be turned a quarter clockwise.
    data = encode(photo(), "JPEG", quality=100, subsampling=0, exif=exif)
    stored, upright = decode_image(data, "name"), decode_image(data, "name", upright=True)
    np.testing.assert_allclose(stored.astype(int), PHOTO, atol=3)
    np.testing.assert_array_equal(upright, np.rot90(stored, -1))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_are_refused(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "green")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert "found 3 frames, expected a still picture" in refusal(data)


def test_phone_pictures_of_several_parts_give_the_first():
    data = encode(photo(), "MPO", save_all=True, append_images=[Image.new("RGB", (32, 24))], quality=100)
    np.testing.assert_allclose(decode_image(data, "name").astype(int), PHOTO, atol=5)


@pytest.mark.parametrize("keep", [0, 1, 20, 60, -30])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_files_are_refused(kind, keep):
    message = refusal(encode(photo(), kind)[:keep])
    assert message.endswith("expected a whole JPEG or PNG picture")
    assert ("an empty file" in message) == (keep == 0)


def test_whatever_pillow_raises_names_the_file():
    """Broken headers give exceptions of many kinds, this one NotImplementedError."""
    data = bytearray(encode(photo(), "DDS"))
    data[80:84] = bytes(4)  # The flags of its pixel format.
    assert "expected a whole JPEG or PNG picture" in refusal(bytes(data))


def test_text_is_no_picture():
    assert "found no picture" in refusal(b"<html>404 Not Found</html>")


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


def test_masks_hold_class_numbers():
    mask = Image.frombytes("L", (3, 1), bytes([0, 8, 255]))
    np.testing.assert_array_equal(decode_mask(encode(mask, "PNG"), "m", (8,)), [[0, 1, 255]])
    assert "found mask value 8, expected one of [0, 7, 255]" in refusal(
        encode(mask, "PNG"), decode_mask, (7,)
    )
    assert "found picture mode RGB" in refusal(encode(photo(), "PNG"), decode_mask, (8,))
    assert "found an empty file" in refusal(b"", decode_mask, (8,))
