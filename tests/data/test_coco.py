"""COCO in miniature and data sets of other categories in its format, good and broken."""

import copy
import functools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from configs import coco as coco_config
from rml_jax.data.sources import SkipBad, make_source, with_class_names
from rml_jax.data.sources.coco import CocoFolder
from rml_jax.data.sources.coco_annotations import parse_annotations
from rml_jax.data.sources.coco_masks import draw_mask
from rml_jax.utils.errors import UserError
from tests.data.archives import COCO_CATEGORIES, polygon, thing

SIZE = (20, 30)  # height, width


def rectangle(top, left, bottom, right):
    mask = np.zeros(SIZE, np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def plain_lengths(mask):
    """Run lengths down the columns, zeros first, counted by hand."""
    flat, counts, value = mask.T.ravel(), [], 0
    while len(flat):
        run = len(flat) if (flat == value).all() else int(np.argmax(flat != value))
        counts.append(run)
        flat, value = flat[run:], 1 - value
    return {"counts": counts, "size": list(SIZE)}


def packed_lengths(mask):
    packed = coco_mask.encode(np.asfortranarray(mask))
    return {"counts": packed["counts"].decode(), "size": list(SIZE)}


@pytest.fixture
def coco(tmp_path):
    """Images 1 (overlapping polygon and packed run lengths over a crowd), 2 (nothing) and 3 (one object)."""
    (tmp_path / "val2014").mkdir()
    (tmp_path / "annotations").mkdir()
    names = {1: "COCO_val2014_000000000001.jpg", 2: "two.jpg", 3: "three.jpg"}
    for name in names.values():
        Image.fromarray(np.full((*SIZE, 3), 99, np.uint8)).save(tmp_path / "val2014" / name)
    content = {
        "images": [{"id": i, "file_name": n, "height": SIZE[0], "width": SIZE[1]} for i, n in names.items()],
        "annotations": [
            thing(1, 13, packed_lengths(rectangle(4, 4, 8, 8)), 16),  # stop sign: class 12
            thing(1, 1, polygon(2, 2, 12, 12), 100),  # person
            thing(1, 90, plain_lengths(rectangle(0, 0, 20, 30)), 600, iscrowd=1),  # toothbrush: class 80
            thing(3, 18, polygon(0, 0, 20, 10) + polygon(0, 20, 20, 30), 400),  # dog in two parts: class 17
        ],
        "categories": COCO_CATEGORIES,
    }
    path = tmp_path / "annotations" / "instances_val2014.json"
    path.write_text(json.dumps(content))
    return tmp_path, path, content


def message_of(root):
    with pytest.raises(UserError) as error:
        CocoFolder(root, "val2014")[0]
    assert "\n" not in str(error.value)
    return str(error.value)


def test_masks_of_all_three_forms(coco):
    source = CocoFolder(coco[0], "val2014", with_masks=True)
    assert len(source) == 2
    assert source.without_objects == 1
    expected = np.full(SIZE, 80)
    expected[2:12, 2:12] = 1
    expected[4:8, 4:8] = 12
    np.testing.assert_array_equal(source[0]["mask"], expected)
    assert source[0]["mask"].dtype == np.uint8
    two_parts = np.zeros(SIZE)
    two_parts[:, :10] = two_parts[:, 20:] = 17
    np.testing.assert_array_equal(source[1]["mask"], two_parts)


def test_tags_count_crowds(coco):
    source = CocoFolder(coco[0], "val2014")
    item = source[0]
    assert set(item) == {"id", "image", "tags"}
    assert item["id"] == "COCO_val2014_000000000001"
    assert np.flatnonzero(item["tags"]).tolist() == [0, 11, 79]
    assert source.class_names[11] == "stop sign"
    assert item["image"].shape == (*SIZE, 3)


def test_broken_folders(coco):
    root, path, content = coco
    (root / "val2014" / "three.jpg").unlink()
    assert f"no image {root / 'val2014' / 'three.jpg'} (missing for 1 of 2 images)" in message_of(root)
    content["annotations"] = content["annotations"][:3]
    content["images"][0]["width"] = 31
    path.write_text(json.dumps(content))
    assert "COCO_val2014_000000000001.jpg: found 30x20 pixels, expected 31x20" in message_of(root)
    path.write_text(json.dumps(content | {"annotations": []}))
    assert f"{path}: found no image with an object" in message_of(root)
    path.write_text(json.dumps({"images": [], "annotations": {}}))
    assert f"{path}: found no list of annotations" in message_of(root)
    path.write_text('{"images": [')
    assert f"{path}: found JSONDecodeError" in message_of(root)
    path.write_text("[" * 100_000)
    assert f"{path}: found RecursionError" in message_of(root)
    path.unlink()
    assert f"{path}: no such file" in message_of(root)


# --- Outlines ---

SQUARE = np.zeros((6, 9), np.uint8)
SQUARE[2:4, 3:7] = 1


def draw(segmentation, size=SQUARE.shape):
    return draw_mask([(1, segmentation, 1, False)], size, "IMAGE")


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 99))
@hypothesis_settings(max_examples=50)
def test_run_lengths_as_pycocotools_writes_them(height, width, share, seed):
    mask = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    code = coco_mask.encode(np.asfortranarray(mask))
    for counts in (code["counts"], code["counts"].decode()):
        found = draw({"size": [height, width], "counts": counts}, mask.shape)
        np.testing.assert_array_equal(found, mask)


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [6, 9], "counts": [20, 2]},
        {"size": [6, 9], "counts": [20, 2, 33]},
        {"size": [6, 9], "counts": []},
        {"size": [6, 9], "counts": ""},
        {"size": [6, 9], "counts": "01"},
        {"size": [6, 9], "counts": "0" * 5},
        {"size": [6, 9], "counts": "~~"},
        {"size": [6, 9], "counts": "P"},
        {"size": [6, 9], "counts": [-1, 55]},
        {"size": [6, 9], "counts": [27.0, 27.0]},
        {"size": [9, 6], "counts": [20, 34]},
        {"counts": [20, 33]},
        {"size": [6, 9]},
        [[float("nan")] * 6],
        [[0, 0, float("inf"), 0, 0, 5]],
        [[0, 0, 1e300, 0, 0, 5]],
        [[1, 1, 4, 4]],
        [[1, 1, 4, 4, 5]],
        [["a"] * 6],
        [],
        None,
        7,
    ],
    ids=str,
)
def test_damaged_outlines_are_refused(segmentation):
    """Too few run lengths gave masks that differed from one time to the next."""
    with pytest.raises(UserError, match="IMAGE: found an outline that can't be drawn"):
        draw(segmentation)


def test_polygons_in_one_list_or_several():
    polygon = [3, 2, 7, 2, 7, 4, 3, 4]
    np.testing.assert_array_equal(draw([polygon]), SQUARE)
    np.testing.assert_array_equal(draw(polygon), SQUARE)


# --- Data sets of others ---

BOX = polygon(2, 2, 10, 10)


def write_photo(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*SIZE, 3)).astype(np.uint8)).save(path)


def make_content(names=("1.png", "2.png", "3.png"), categories=((1, "weld"), (2, "crack"))):
    """One object in each image, of the first category, then the second, and so on."""
    return {
        "images": [
            {"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
            for number, name in enumerate(names, 1)
        ],
        "annotations": [
            thing(number, categories[(number - 1) % len(categories)][0], BOX, 64)
            for number in range(1, len(names) + 1)
        ],
        "categories": [{"id": number, "name": name} for number, name in categories],
    }


@pytest.fixture
def own(tmp_path):
    """Function (edit, split="train") that writes a split of three images with a changed annotation file: the root."""

    def write(edit=lambda content: None, split="train", **options):
        content = make_content(**options)
        for number, image in enumerate(content["images"]):
            write_photo(tmp_path / split / image["file_name"], number)
        edit(content)
        path = tmp_path / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
        return tmp_path

    return write


def config_for(root):
    config = coco_config.get_config()
    config.data.root, config.data.train_split, config.data.val_split = str(root), "train", "val"
    return config


def tags_of(source):
    return [
        tuple(source.class_names[place] for place in np.flatnonzero(source[index]["tags"]))
        for index in range(len(source))
    ]


@pytest.mark.parametrize(
    "categories",
    [
        ((1, "weld"), (2, "crack")),
        ((0, "weld"), (1, "crack")),
        ((7, "weld"), (300, "crack")),
        ((16, "weld"), (17, "crack")),
    ],
    ids=str,
)
def test_a_file_with_its_own_categories(own, categories):
    """They were read as COCO's: "crack" trained as bicycle."""
    config = with_class_names(config_for(own(categories=categories)))
    assert config.data.class_names == ("weld", "crack")
    assert config.data.category_ids == tuple(number for number, _ in categories)
    source = make_source(config.data, "train", with_masks=True)
    assert tags_of(source) == [("weld",), ("crack",), ("weld",)]
    assert np.unique(source[1]["mask"]).tolist() == [0, 2]


def test_the_80_classes_where_the_names_are_the_80(coco):
    config = config_for(coco[0])
    config.data.val_split = config.data.train_split = "val2014"
    config = with_class_names(config)
    assert (len(config.data.class_names), config.data.class_names[16]) == (80, "dog")
    assert config.data.category_ids[11:17] == (13, 14, 15, 16, 17, 18)


def test_classes_in_an_order_of_ones_own(own):
    config = config_for(own())
    config.data.class_names = ("crack", "weld")
    config = with_class_names(config)
    assert config.data.category_ids == (2, 1)
    source = make_source(config.data, "train", with_masks=False)
    assert [source[index]["tags"].tolist() for index in range(3)] == [[0, 1], [1, 0], [0, 1]]
    config.data.class_names, config.data.category_ids = ("weld",), ()
    with pytest.raises(UserError, match=r"found category 2 'crack', expected .*: 1 'weld'"):
        make_source(config.data, "train", with_masks=False)
    config.data.class_names = ("rust",)
    with pytest.raises(
        UserError, match=r"found the categories 1 'weld', 2 'crack', expected 'rust' among them"
    ):
        with_class_names(config)


def test_categories_that_are_no_classes(own):
    """Roboflow writes a supercategory as category 0, other tools a background; both without annotations."""

    def add(content):
        content["categories"] = [
            {"id": 0, "name": "Welds", "supercategory": "none"},
            {"id": 1, "name": "weld", "supercategory": "welds"},
            {"id": 2, "name": "crack", "supercategory": "crack"},
            {"id": 3, "name": "Background"},
        ]

    source = CocoFolder(own(add), "train")
    assert (source.class_names, source.category_ids) == (("weld", "crack"), (1, 2))


@pytest.mark.parametrize(
    ("categories", "words"),
    [
        (((1, "crack"), (2, "weld")), "found category 2 'weld', expected 1 'weld' as in the training split"),
        (((1, "weld"), (2, "rust")), "found category 2 'rust', expected .*: 1 'weld', 2 'crack'"),
    ],
)
def test_validation_of_other_categories_than_training(own, categories, words):
    own()
    root = own(split="val", categories=categories)
    with pytest.raises(UserError, match=f"instances_val.json: {words}"):
        make_source(with_class_names(config_for(root)).data, "val", with_masks=True)


@pytest.mark.parametrize(
    ("categories", "words"),
    [
        (None, "found no categories"),
        ([], "found no categories"),
        ([{"id": "one", "name": "weld"}], "category 1: found id 'one'"),
        ([{"id": 1}], "category 1: found id 1 and name None"),
        ([{"id": 1, "name": "weld"}] * 2, "category 2: found the id 1 a second time"),
        ([{"id": 1, "name": "weld"}, {"id": 2, "name": "background"}], "found the class 'background'"),
        ([{"id": n, "name": f"c{n}"} for n in range(300)], "found 300 classes, expected at most 254$"),
        (["weld"], "category 1: found id None"),
    ],
    ids=str,
)
def test_categories_that_are_refused(own, categories, words):
    with pytest.raises(UserError, match=words):
        CocoFolder(own(lambda content: content.update(categories=categories)), "train")


@pytest.mark.parametrize("outline", [None, [], [[]], "no key"], ids=str)
def test_training_needs_no_outlines(own, outline):
    def change(content):
        for entry in content["annotations"]:
            entry.pop("segmentation") if outline == "no key" else entry.update(segmentation=outline)

    root = own(change)
    assert tags_of(CocoFolder(root, "train")) == [("weld",), ("crack",), ("weld",)]
    with pytest.raises(UserError, match=r"found no outline of an object in '1.png' \(so for 3 of 3 images\)"):
        CocoFolder(root, "train", with_masks=True)


@pytest.mark.parametrize("area", [None, "64", float("nan"), "no key"], ids=str)
def test_areas_that_are_missing_are_counted(own, area):
    """The smaller object is on top."""

    def change(content):
        content["annotations"].insert(0, thing(1, 2, polygon(3, 3, 6, 6), 9))
        for entry in content["annotations"][:2]:
            entry.pop("area") if area == "no key" else entry.update(area=area)

    mask = CocoFolder(own(change), "train", with_masks=True)[0]["mask"]
    assert (mask == 2).sum() == 9
    assert (mask == 1).sum() == 64 - 9


def test_numbers_in_other_types(own):
    """Spreadsheets and pandas write 30.0, and ids as text."""

    def change(content):
        for image in content["images"]:
            image.update(height=float(image["height"]), width=float(image["width"]))
        for entry in content["annotations"]:
            entry.update(image_id=str(entry["image_id"]), category_id=float(entry["category_id"]))
            entry.pop("iscrowd")
        content["images"][2] = {"id": 3, "file_name": "3.png"}  # without a size

    source = CocoFolder(own(change), "train", with_masks=True)
    assert tags_of(source) == [("weld",), ("crack",), ("weld",)]
    assert source[2]["mask"].shape == SIZE


WRONG = {
    "category": lambda content: content["annotations"][1].update(category_id=9),
    "type of category": lambda content: content["annotations"][1].update(category_id=[2]),
    "crowd": lambda content: content["annotations"][1].update(iscrowd="no"),
    "width": lambda content: content["images"][1].update(width=30.5),
    "height": lambda content: content["images"][1].update(height="tall"),
    "huge": lambda content: content["images"][1].update(height=10**9),
    "no file name": lambda content: content["images"][1].pop("file_name"),
    "file name": lambda content: content["images"][1].update(file_name=7),
    "line feed": lambda content: content["images"][1].update(file_name="a\nb.png"),
    "surrogate": lambda content: content["images"][1].update(file_name="\ud800.png"),
    "image": lambda content: content["images"].insert(1, None),
    "id": lambda content: content["images"].insert(1, {"id": [2], "file_name": "2.png"}),
    "two images of one id": lambda content: content["images"].append({"id": 2, "file_name": "4.png"}),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_one_wrong_entry_is_reported_with_its_image(own, change):
    """It ended everything with a traceback."""
    source = CocoFolder(own(change), "train")
    messages = []
    for index in range(len(source)):
        try:
            assert source[index]["id"] in ("1", "2", "3")
        except UserError as error:
            messages.append(str(error))
    assert messages
    assert all("instances_train.json " in text and text.isprintable() for text in messages)
    assert any("the first: " in note for note in source.notes)
    assert sum(tags is not None for _, tags in source.item_tags()) == len(source) - len(messages) >= 2
    tags = tags_of(SkipBad(source))
    assert len(tags) == len(source)
    assert set(tags) <= {("weld",), ("crack",)}


def test_annotations_of_no_image_are_counted(own):
    def add(content):
        content["annotations"] += [thing(99, 1, BOX, 64), None, thing(None, 1, BOX, 64)]

    (note,) = CocoFolder(own(add), "train").notes
    assert "annotations of no image in the file: 3" in note


def test_images_of_one_name_in_several_folders(own):
    source = CocoFolder(own(names=("a/x.png", "b/x.png", "b/y.png")), "train")
    assert [source[index]["id"] for index in range(3)] == ["a/x", "b/x", "b/y"]


@pytest.mark.parametrize(
    ("annotations", "images", "prefix"),
    [
        ("annotations/instances_train.json", "train", ""),
        ("annotations/instances_train.json", "images/train", ""),
        ("annotations/instances_train.json", "images", ""),
        ("annotations/train.json", "train", "train/"),
        ("train/_annotations.coco.json", "train", ""),
        ("annotations/instances_default.json", "images/default", ""),
        ("annotations.json", ".", ""),
        ("annotations.json", "images", ""),
        ("_annotations.coco.json", ".", ""),
        ("result.json", "images", "images\\"),
        ("result.json", "images", "/data/upload/1/"),
        ("labels.json", "data", ""),
    ],
)
def test_layouts_of_tools(tmp_path, annotations, images, prefix):
    content = make_content()
    for number, image in enumerate(content["images"]):
        write_photo(tmp_path / images / image["file_name"], number)
        image["file_name"] = prefix + image["file_name"]
    path = tmp_path / annotations
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    source = CocoFolder(tmp_path, "train", with_masks=True)
    assert tags_of(source) == [("weld",), ("crack",), ("weld",)]
    assert len({source[index]["id"] for index in range(3)}) == 3


def test_one_file_for_the_whole_data_set_is_divided(tmp_path):
    content = make_content(names=[f"{number}.png" for number in range(20)])
    for number, image in enumerate(content["images"]):
        write_photo(tmp_path / "images" / image["file_name"], min(number, 10))  # The last ten are copies.
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    config = with_class_names(config_for(tmp_path))
    config.data.val_fraction = 0.3
    train, val = (make_source(config.data, split, with_masks=False) for split in ("train", "val"))
    ids = [{source[index]["id"] for index in range(len(source))} for source in (train, val)]
    assert ids[0] | ids[1] == {str(number) for number in range(20)}
    assert not ids[0] & ids[1]
    assert len({str(number) for number in range(10, 20)} - ids[0]) in (0, 10)
    with pytest.raises(UserError, match="has no split 'test': expected train or val"):
        make_source(config.data, "test", with_masks=False)


def test_a_split_without_a_file(own):
    with pytest.raises(
        UserError, match=r"instances_val.json: no such file, .*; found annotations/instances_train"
    ):
        CocoFolder(own(), "val")


def test_two_entries_for_one_file(own):
    def add(content):
        content["images"].append({"id": 9, "file_name": "3.jpg", "height": SIZE[0], "width": SIZE[1]})
        content["annotations"].append(thing(9, 2, BOX, 64))

    source = CocoFolder(own(add), "train")
    with pytest.raises(UserError, match=r"image 3: found '3.png' for 2 images without suffix"):
        source[2]


# --- Any damage ---

VALUES = (
    None,
    True,
    -1,
    0,
    1,
    10**30,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "1",
    "\ud800",
    "a\nb",
    [],
    [[]],
    {},
)


def places_in(value, path=()):
    """Paths of keys to all values in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield (*path, key)
        yield from places_in(below, (*path, key))


def damage(content, rng):
    """Deletes or replaces a value of a JSON object; then perhaps changes a byte of its text."""
    for _ in range(rng.integers(1, 4)):
        places = list(places_in(content))
        *path, key = places[rng.integers(len(places))]
        owner = functools.reduce(lambda value, key: value[key], path, content)
        if rng.random() < 0.3:
            del owner[key]
        else:
            owner[key] = copy.deepcopy(VALUES[rng.integers(len(VALUES))])
        if not content:
            break
    data = bytearray(json.dumps(content).encode())
    if rng.random() < 0.2:
        data[rng.integers(len(data))] = rng.integers(256)
    return bytes(data)


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_files_give_data_or_one_line(count):
    rng = np.random.default_rng(count)
    messages = []
    for _ in range(count):
        content = make_content()
        content["annotations"][1]["segmentation"] = packed_lengths(rectangle(1, 2, 9, 9))
        content["annotations"][2]["segmentation"] = plain_lengths(rectangle(1, 2, 9, 9))
        try:
            annotations = parse_annotations(damage(content, rng), "FILE", with_masks=True)
            for image in annotations.images:
                if image.error:
                    raise UserError(image.error)
                if image.objects is not None:
                    mask = draw_mask(image.objects, SIZE, "IMAGE")
                    assert mask.max() <= len(annotations.categories.names)
        except UserError as error:
            messages.append(str(error))
    assert [message for message in messages if not message.isprintable()] == []
    assert count / 10 < len(messages) < count * 0.95
