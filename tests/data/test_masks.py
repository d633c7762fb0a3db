"""Masks in the forms that annotation tools write, and masks that hold other numbers than was said."""

import io

import numpy as np
import pytest
from PIL import Image

from rml_jax.data.masks import NO_IGNORE, check_all_classes_occur, decode_mask, read_label_map
from rml_jax.utils.errors import UserError

NUMBERS = np.repeat(np.array([[0, 1, 2], [2, 1, 0]], np.uint8), 4, axis=1)
COLOURS = {(0, 0, 0): 0, (128, 0, 0): 1, (0, 128, 0): 2}
LABEL_MAP = """# label:color_rgb:parts:actions
background:0,0,0::
Weld:128,0,0::
crack:0,128,0:body,head:
rust:9,9,9::
"""


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def palette_image(numbers, colours):
    image = Image.frombytes("P", numbers.shape[::-1], numbers.tobytes())
    image.putpalette([channel for colour in colours for channel in colour])
    return image


def grey_image(numbers=NUMBERS):
    return Image.fromarray(numbers)


def grey_and(alpha):
    return Image.merge("LA", [grey_image(), Image.new("L", grey_image().size, alpha)])


def few_bit_png(numbers, bits):
    """A grey PNG of 2 or 4 bits per pixel, as GIMP and ImageMagick write masks of few classes."""
    import struct
    import zlib

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    each = np.unpackbits(numbers[..., None], axis=-1)[..., -bits:].reshape(len(numbers), -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(each, axis=-1))
    header = struct.pack(">IIBBBBB", numbers.shape[1], numbers.shape[0], bits, 0, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def refusal(data, mask_values=(1, 2), *arguments):
    with pytest.raises(UserError) as error:
        decode_mask(data, "PATH/m.png", mask_values, *arguments)
    assert str(error.value).startswith("PATH/m.png: ")
    assert "\n" not in str(error.value)
    return str(error.value)


# --- Forms ---


@pytest.mark.parametrize(
    "data",
    [
        encode(grey_image()),
        encode(grey_image(), "TIFF"),
        encode(grey_image(), "BMP"),
        encode(palette_image(NUMBERS, [(0, 0, 0), (9, 9, 9), (7, 0, 0)])),
        encode(palette_image(NUMBERS, COLOURS), bits=2),
        encode(palette_image(NUMBERS, COLOURS), transparency=0),
        encode(palette_image(NUMBERS, COLOURS), "GIF"),
        encode(grey_image(NUMBERS.astype(np.uint16))),
        encode(grey_image(NUMBERS.astype(np.uint16)), "TIFF"),
        encode(grey_image(NUMBERS.astype(np.int32)), "TIFF"),
        encode(Image.merge("RGB", [grey_image()] * 3)),
        encode(Image.merge("RGB", [grey_image()] * 3).convert("RGBA")),
        encode(grey_and(alpha=255)),
        few_bit_png(NUMBERS, 2),
        few_bit_png(NUMBERS, 4),
    ],
    ids=str,
)
def test_numbers_in_every_form_that_tools_write(data):
    np.testing.assert_array_equal(decode_mask(data, "m", (1, 2)), NUMBERS)


def test_four_classes_in_two_bits_are_not_ignored():
    """Pillow stretches 2 bits to 0, 85, 170 and 255."""
    numbers = np.array([[0, 1, 2, 3]], np.uint8)
    np.testing.assert_array_equal(decode_mask(few_bit_png(numbers, 2), "m", (1, 2, 3)), numbers)


def test_one_bit_masks_hold_class_1():
    data = encode(Image.fromarray(NUMBERS > 0))
    np.testing.assert_array_equal(decode_mask(data, "m", (1,)), NUMBERS > 0)
    assert "found mask value 1, expected one of [0, 255]" in refusal(data, (255,), NO_IGNORE)


def test_masks_hold_class_numbers():
    data = encode(Image.frombytes("L", (3, 1), bytes([0, 8, 255])))
    np.testing.assert_array_equal(decode_mask(data, "m", (8,)), [[0, 1, 255]])
    assert "found mask value 8, expected one of [0, 7, 255]" in refusal(data, (7,))
    assert "found an empty file" in refusal(b"")


@pytest.mark.parametrize("value", [256, 257, 65535])
def test_numbers_above_255_do_not_wrap(value):
    data = encode(Image.fromarray(np.array([[0, 1, value]], np.uint16)))
    assert f"found mask value {value}, expected one of [0, 1, 255]" in refusal(data, (1,))


def test_object_of_255_once_the_user_says_so():
    data = encode(Image.frombytes("L", (3, 1), bytes([0, 255, 255])))
    np.testing.assert_array_equal(decode_mask(data, "m", (255,), NO_IGNORE), [[0, 1, 1]])
    np.testing.assert_array_equal(decode_mask(data, "m", (1,)), [[0, 255, 255]])


def test_another_number_for_ignore():
    data = encode(Image.frombytes("L", (4, 1), bytes([0, 1, 255, 9])))
    np.testing.assert_array_equal(decode_mask(data, "m", (1, 255), 9), [[0, 1, 2, 255]])


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (encode(grey_image(), "JPEG"), "found JPEG"),
        (encode(grey_image(), "WEBP"), "found WEBP"),
        (encode(grey_image(), "PPM"), "found PPM"),
        (encode(grey_image(), "TIFF", compression="jpeg"), "found TIFF"),
        (encode(grey_and(alpha=0)), "found transparent pixels"),
        (encode(Image.new("F", (9, 9)), "TIFF"), "found image mode F"),
        (encode(Image.new("CMYK", (9, 9)), "TIFF"), "found image mode CMYK"),
        (encode(Image.new("RGB", (9, 9), (128, 0, 0))), "found colours, such as (128, 0, 0)"),
        (encode(Image.new("RGBA", (9, 9), (0, 7, 0, 255))), "found colours, such as (0, 7, 0)"),
    ],
)
def test_masks_whose_numbers_are_not_known(data, found):
    assert found in refusal(data)


# --- Colours ---


@pytest.fixture
def colours(tmp_path):
    (tmp_path / "labelmap.txt").write_text(LABEL_MAP)
    return read_label_map([tmp_path / "masks", tmp_path], ("weld", "Crack"))


def test_label_map_of_cvat(colours):
    assert colours == {**COLOURS, (224, 224, 192): 255}


def test_no_label_map(tmp_path):
    assert read_label_map([tmp_path], ("weld",)) is None


@pytest.mark.parametrize("line", ["weld", "weld:1,2::", "weld:red::", "a:0,0,0::\nb:0,0,0::"])
def test_label_map_in_another_form(line, tmp_path):
    (tmp_path / "labelmap.txt").write_text(line)
    with pytest.raises(UserError, match=r"labelmap\.txt line"):
        read_label_map([tmp_path], ("weld",))


def test_masks_in_the_colours_of_a_label_map(colours):
    indexed = palette_image(NUMBERS, COLOURS)
    for image in (indexed.convert("RGB"), indexed.convert("RGBA"), indexed):
        np.testing.assert_array_equal(decode_mask(encode(image), "m", (1, 2), 255, colours), NUMBERS)


def test_palette_that_an_editor_sorted_anew(colours):
    """The colours are as they were, the numbers are not."""
    order = np.array([2, 0, 1], np.uint8)
    image = palette_image(order[NUMBERS], [list(COLOURS)[place] for place in (1, 2, 0)])
    np.testing.assert_array_equal(decode_mask(encode(image), "m", (1, 2), 255, colours), NUMBERS)


def test_numbers_beside_a_label_map(colours):
    np.testing.assert_array_equal(decode_mask(encode(grey_image()), "m", (1, 2), 255, colours), NUMBERS)


@pytest.mark.parametrize("colour", [(127, 0, 0), (9, 9, 9)])
def test_colours_of_no_class(colours, colour):
    pixels = np.array(palette_image(NUMBERS, COLOURS).convert("RGB"))
    pixels[0, 0] = colour
    assert "found colour" in refusal(encode(Image.fromarray(pixels)), (1, 2), 255, colours)


# --- Masks as a whole ---


def check(masks, class_names=("cat", "dog"), **options):
    values = tuple(range(1, len(class_names) + 1))
    read = [np.array(mask, np.uint8) for mask in masks].__getitem__
    check_all_classes_occur(read, len(masks), "MASKS", class_names, values, **options)


def test_binary_masks_of_0_and_255():
    with pytest.raises(UserError) as error:
        check([[[0, 255]], [[0, 0]]], ("crack",))
    message = str(error.value)
    assert (
        "MASKS: found no values but 0 (background) and 255 (ignore, 25.0% of the pixels) in 2 masks"
        in message
    )
    assert "--config.data.mask_values='(255,)' --config.data.mask_ignore=-1" in message
    with pytest.raises(UserError, match="found no values but 0"):
        check([[[0, 255]], [[0, 0]]], ("crack",), allow_absent=True)


def test_a_class_in_none_of_the_masks():
    with pytest.raises(
        UserError, match=r"MASKS: found dog in none of 2 masks.* 1 cat, 2 dog .*allow_absent=True"
    ):
        check([[[0, 1]], [[1, 255]]])
    check([[[0, 1]], [[1, 255]]], allow_absent=True)
    check([[[0, 1]], [[2, 255]]])


def test_masks_without_any_object():
    with pytest.raises(UserError, match="found cat, dog in none of 1 masks"):
        check([[[0, 0]]])
    check([[[0, 0]]], allow_absent=True)


def test_masks_that_cannot_be_read_say_why():
    def read(index):
        raise UserError(f"{index}.png: found mask value 127")

    with pytest.raises(UserError, match="found mask value 127"):
        check_all_classes_occur(read, 3, "MASKS", ("cat",), (1,))


def test_only_as_many_masks_are_looked_at_as_it_takes():
    looked_at = []

    def read(index):
        looked_at.append(index)
        return np.array([[1, 2]], np.uint8)

    check_all_classes_occur(read, 1000, "MASKS", ("cat", "dog"), (1, 2))
    assert len(looked_at) == 1
