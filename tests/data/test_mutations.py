"""Damaged files of every kind: each ends in data or in one line that says what is wrong.

300 files in the fast tests, 10,000 in the slow ones, made from sound ones by a seeded random generator.
"""

import contextlib
import io
import json
import random
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask

from rml_jax.data import images
from rml_jax.data.images import decode_image
from rml_jax.data.masks import decode_mask, read_label_map
from rml_jax.data.preparation.voc import xml_tags
from rml_jax.data.sources.coco import CocoFolder
from rml_jax.data.sources.folder import PhotoFolder
from rml_jax.data.sources.voc import VocFolder
from rml_jax.data.tags import parse_list, read_tag_names
from rml_jax.utils.errors import UserError

CLASSES = ("cat", "dog", "owl")
SIZE = (20, 24)

# Sound files


def _photo():
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.integers(0, 256, (5, 6, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    return Image.fromarray(smooth)


def _saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _see_through(image):
    image = image.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def _images():
    photo = _photo()
    deep = Image.fromarray((np.arange(480, dtype=np.uint16) * 130).reshape(SIZE))
    return {
        "jpeg": _saved(photo, "JPEG", quality=90),
        "jpeg, progressive": _saved(photo, "JPEG", progressive=True, exif=_turned()),
        "jpeg, grey": _saved(photo.convert("L"), "JPEG"),
        "jpeg, cmyk": _saved(photo.convert("CMYK"), "JPEG"),
        "png": _saved(photo, "PNG", exif=_turned()),
        "png, palette": _saved(photo.quantize(16), "PNG", transparency=3),
        "png, alpha": _saved(_see_through(photo), "PNG"),
        "png, 16 bits": _saved(deep, "PNG"),
        "gif": _saved(photo.quantize(16), "GIF", transparency=3),
        "tiff": _saved(photo, "TIFF"),
        "tiff, lzw": _saved(photo, "TIFF", compression="tiff_lzw", exif=_turned()),
        "webp": _saved(photo, "WEBP", quality=80),
        "webp, lossless": _saved(_see_through(photo), "WEBP", lossless=True),
        "bmp": _saved(photo, "BMP"),
    }


def _masks():
    numbers = np.zeros(SIZE, np.uint8)
    numbers[2:9], numbers[9:14], numbers[14:16] = 1, 2, 255
    palette = Image.fromarray(numbers).convert("P")
    grey = Image.fromarray(numbers)
    return {
        "mask, palette": _saved(palette, "PNG"),
        "mask, grey": _saved(grey, "PNG"),
        "mask, 1 bit": _saved(Image.fromarray(numbers == 1), "PNG"),
        "mask, rgb": _saved(grey.convert("RGB"), "PNG"),
        "mask, tiff": _saved(grey, "TIFF", compression="tiff_lzw"),
        "mask, bmp": _saved(palette, "BMP"),
    }


_TAGGED = {"a": ["cat"], "b": ["cat", "dog"], "c": []}


def _tag_files():
    rows = [{"image": f"{name}.jpg", "tags": tags} for name, tags in _TAGGED.items()]
    choice = [
        {
            "id": 1,
            "image": "/data/upload/1/0123abcd-a.jpg",
            "choice": "cat",
            "annotation_id": 1,
            "lead_time": 2.5,
        },
        {
            "id": 2,
            "image": "b.jpg",
            "choice": {"choices": ["cat", "dog"]},
            "annotation_id": 2,
            "lead_time": 1.0,
        },
    ]
    value = {"value": {"choices": ["cat"]}, "from_name": "choice", "type": "choices"}
    tasks = [{"id": 1, "data": {"image": "a.jpg"}, "annotations": [{"id": 4, "result": [value]}]}]
    table = "image,tags\na.jpg,cat\nb.jpg,cat|dog\nc.jpg,\n"
    return {
        "csv": table,
        "csv, semicolons": "file name;labels\na.jpg;'cat'\nb.jpg;\"cat, dog\"\n",
        "csv, one column per class": "image,cat,dog\na.jpg,1,0\nb.jpg,1,1\nc.jpg,0,0\n",
        "csv, UTF-16": table.encode("utf-16"),
        "csv, Label Studio": "image,id,choice,annotator,annotation_id,lead_time\n"
        'a.jpg,1,cat,1,3,2.0\nb.jpg,2,"{""choices"":[""cat"",""dog""]}",1,4,1.0\n',
        "json lines": "".join(json.dumps(row) + "\n" for row in rows),
        "metadata.jsonl": '{"file_name": "a.jpg", "objects": {"bbox": [[1, 2, 3, 4]], "categories": ["cat"]}}\n',
        "json, Label Studio": json.dumps(tasks),
        "json-min, Label Studio": json.dumps(choice),
        "json, COCO's tags": json.dumps(_coco()),
        "xml, CVAT": '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>'
        '<image id="0" name="a.jpg" width="24" height="20"><tag label="cat" source="manual"></tag>'
        '<polygon label="dog" points="1,1;5,1;5,5"/></image><image id="1" name="b.jpg"/></annotations>',
    }


def _coco():
    outlines = (
        [[1.0, 1, 10, 1, 10, 10.5]],
        {"size": list(SIZE), "counts": [25, 30, 425]},
        coco_mask.frPyObjects({"size": list(SIZE), "counts": [40, 9, 431]}, *SIZE) | {"size": list(SIZE)},
    )
    outlines[2]["counts"] = outlines[2]["counts"].decode()
    return {
        "images": [
            {"id": 1, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]},
            {"id": 2, "file_name": "b.jpg", "height": SIZE[0], "width": SIZE[1]},
        ],
        "annotations": [
            {
                "id": number,
                "image_id": 1 + number % 2,
                "category_id": (17, 18, 17)[number],
                "segmentation": outline,
                "area": 50.5,
                "bbox": [1, 1, 9, 9],
                "iscrowd": int(number == 2),
            }
            for number, outline in enumerate(outlines)
        ],
        "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
    }


_VOC_XML = (
    '<?xml version="1.0" encoding="gb2312"?>\n<annotation><folder>VOC2012</folder><filename>a.jpg</filename>'
    "<object><name>cat</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin></bndbox></object>"
    "<object><name>person</name><part><name>head</name></part></object></annotation>"
)
_VOC_LIST = "a\nb.jpg\n/JPEGImages/c.png /SegmentationClass/c.png\n"
_LABEL_MAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\ndog:0,128,0:a,b:\n"

# Damage

_ODD = (
    *(None, True, False, 0, -1, 0.5, 1e400, float("nan"), 10**30),
    *("", "x", "\ud800", "a\nb", [], {}, [[]], [1], {"a": 1}),
)
_TOKENS = (
    *(b"\0", b"\n", b"\r", b"\t", b"\xff", b"\xe9", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xe2\x80\xa8"),
    *(b'"', b"'", b",", b";", b"|", b"[", b"]", b"{", b"}", b"<", b">", b"&", b"/", b"..", b"\\", b":", b"-"),
    *(b"1e999", b"NaN", b"999999999999", b"null", b"image", b"tags", b"cat"),
    *(b"<!--", b"<![CDATA[", b"<tag>", b"encoding='foo'"),
)


def mutate(data, rng):
    """Damages bytes in one to four places."""
    if data[:1] in b"{[" and rng.random() < 0.6:
        with contextlib.suppress(ValueError):
            return _mutate_json(json.loads(data), rng)
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place = rng.randrange(len(data) + 1)
        length = rng.choice((1, 1, 2, 4, 16, 64))
        kind = rng.randrange(7)
        if kind == 0 and data:
            data[place % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place : place + length] = rng.randbytes(length)
        elif kind == 2:
            del data[place : place + length]
        elif kind == 3:
            data[place:place] = data[place : place + length] * rng.choice((1, 2, 20))
        elif kind == 4:
            del data[place:]
        elif kind == 5:
            data[place:place] = rng.choice(_TOKENS)
        else:
            data[place : place + length] = bytes([rng.choice((0, 1, 127, 128, 255))]) * length
    return bytes(data)


def _mutate_json(content, rng):
    """Replaces, removes or repeats one value of a JSON document."""
    places = []

    def walk(value):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            places.append((value, key))
            if isinstance(inner, dict | list):
                walk(inner)

    walk(content)
    if places:
        holder, key = rng.choice(places)
        kind = rng.randrange(4)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, list):
            holder.append(holder[key])
        elif kind == 2:
            holder[key] = str(holder[key])
        else:
            holder[key] = rng.choice(_ODD)
    return json.dumps(content).encode()


# Readers: functions of bytes and a folder. Each raises UserError, or returns after it has checked the data.


def _read_image(data, folder):
    del folder
    for upright in (False, True):
        pixels = decode_image(data, "PATH/a.image", upright)
        expected = _as_pillow_reads(data, upright)
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3
        if expected is not None:
            np.testing.assert_array_equal(pixels, expected)


def _as_pillow_reads(data, upright):
    """RGB on white, or None for values of more than 8 bits, which pillow does not bring to 8."""
    image = Image.open(io.BytesIO(data))
    image.load()
    bits = data[24] if image.format == "PNG" else max(getattr(image, "tag_v2", {}).get(258, (8,)))
    if image.mode.startswith("I") or bits > 8 or getattr(image, "tag_v2", {}).get(339, (1,))[0] == 2:
        return None
    if upright:
        with contextlib.suppress(Exception):  # Broken EXIF data are ignored.
            image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _read_mask(data, folder):
    del folder
    mask = decode_mask(data, "PATH/a.png", (1, 2, 3))
    assert mask.dtype == np.uint8
    assert mask.ndim == 2
    assert set(np.unique(mask)) <= {0, 1, 2, 3, 255}
    image = Image.open(io.BytesIO(data))
    if image.mode in ("1", "P") or (image.mode == "L" and image.format == "BMP"):
        np.testing.assert_array_equal(mask, np.asarray(image))


def _read_tags(data, folder):
    path = folder / "tags"
    path.write_bytes(data)
    for name, (tags, where) in read_tag_names(path).items():
        assert name
        assert where.startswith(str(path))
        for text in (name, *tags):
            text.encode()
            assert all(character.isprintable() or ord(character) > 127 for character in text)


def _read_voc_xml(data, folder):
    del folder
    assert set(xml_tags(data, "PATH/a.xml")) <= set(range(20))


def _read_list(data, folder):
    with contextlib.suppress(UnicodeDecodeError):
        ids = parse_list(data.decode(), "PATH/list.txt")
        assert all(name == name.strip() for name in ids)
        assert len(set(ids)) == len(ids)
    (folder / "photos").mkdir(exist_ok=True)
    for name in "abc":
        Image.new("RGB", SIZE).save(folder / f"photos/{name}.png")
    (folder / "tags.csv").write_text("image,tags\na,cat\nb,dog\nc,cat\n")
    (folder / "val.txt").write_bytes(data)
    options = {"tags_file": folder / "tags.csv", "val_list": folder / "val.txt"}
    assert 1 <= len(PhotoFolder(folder / "photos", False, **options)) <= 3


def _read_voc(data, folder):
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    if not (folder / "JPEGImages/a.jpg").exists():
        for name in ("a.jpg", "b.jpg", "c.png"):
            _photo().save(folder / "JPEGImages" / name)
            mask = folder / f"SegmentationClass/{name[0]}.png"
            mask.write_bytes(_masks()["mask, palette"])
    (folder / "ImageSets/Segmentation/train.txt").write_bytes(data)
    source = VocFolder(folder, "train", CLASSES, (1, 2, 3))
    assert all(source[number]["tags"].tolist() == [1, 1, 0] for number in range(len(source)))


def _read_coco(data, folder):
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "train2014").mkdir(exist_ok=True)
    for name in "ab":
        _photo().save(folder / f"train2014/{name}.jpg")
    (folder / "annotations/instances_train2014.json").write_bytes(data)
    source = CocoFolder(folder, "train2014", with_masks=True)
    for number in range(len(source)):
        item = source[number]
        assert item["mask"].shape == item["image"].shape[:2]
        assert item["tags"].shape == (len(source.class_names),)
        assert set(np.unique(item["mask"])) <= {0, *(1 + np.flatnonzero(item["tags"]))}


def _read_label_map(data, folder):
    (folder / "labelmap.txt").write_bytes(data)
    for colour, number in read_label_map([folder], CLASSES).items():
        assert len(colour) == 3
        assert number in (0, 1, 2, 3, 255)


SOUND = {
    **{kind: (data, _read_image) for kind, data in _images().items()},
    **{kind: (data, _read_mask) for kind, data in _masks().items()},
    **{kind: (data, _read_tags) for kind, data in _tag_files().items()},
    "xml, VOC": (_VOC_XML, _read_voc_xml),
    "list": ("a\nb.jpg\n", _read_list),
    "list, VOC": (_VOC_LIST, _read_voc),
    "json, COCO": (json.dumps(_coco()), _read_coco),
    "json, COCO again": (json.dumps(_coco(), indent=1), _read_coco),
    "labelmap.txt": (_LABEL_MAP, _read_label_map),
}
_FAST = -(-300 // len(SOUND))
_SLOW = -(-10_000 // len(SOUND)) - _FAST


def sound_file(kind):
    data, read = SOUND[kind]
    return data.encode() if isinstance(data, str) else data, read


@pytest.fixture(autouse=True)
def small_images(monkeypatch):
    """Lowers the limit of pixels to 2 million: damaged sizes would take seconds and gigabytes."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1 << 20)
    monkeypatch.setattr(images, "MAX_PIXELS", 2 << 20)


@pytest.mark.parametrize("kind", SOUND)
def test_sound_files_are_read(kind, tmp_path):
    data, read = sound_file(kind)
    read(data, tmp_path)


def count_refused(kind, seeds, folder):
    """Reads damaged files. Returns how many are refused."""
    data, read = sound_file(kind)
    refused = 0
    for seed in seeds:
        damaged = mutate(data, random.Random(f"{kind} {seed}"))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, about what it makes of broken data.
                read(damaged, folder)
        except UserError as error:
            refused += 1
            message = str(error)
        except Exception as error:
            pytest.fail(f"{kind} {seed}: {type(error).__name__}: {error}\n{damaged[:300]!r}")
        else:
            message = "read"
        assert message, f"{kind} {seed}"
        assert "\n" not in message, f"{kind} {seed}: {message}"
    return refused


@pytest.mark.parametrize("kind", SOUND)
def test_damaged_files(kind, tmp_path):
    assert count_refused(kind, range(_FAST), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOUND)
def test_many_damaged_files(kind, tmp_path):
    assert 0 < count_refused(kind, range(_FAST, _FAST + _SLOW), tmp_path) < _SLOW
