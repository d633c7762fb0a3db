"""Predictions as data sets, read back by pycocotools and, in the slow suite, by datumaro and supervision."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from rml_jax.data.masks import read_label_map
from rml_jax.data.sources.coco import CocoFolder
from rml_jax.data.sources.coco_categories import CocoCategories
from rml_jax.inference.datasets import CocoDataset, CocoReference, CocoResults, VocDataset
from rml_jax.inference.predictor import Prediction
from rml_jax.utils.errors import UserError

CLASSES = ("ant", "bee", "čšž 猫")
CATEGORIES = CocoCategories(CLASSES, (3, 17, 90))
MASK_VALUES = (8, 12, 15)
SIZES = {"a b": (20, 31), "trip/b": (33, 17), "empty": (12, 12), "full": (9, 9)}


def make_masks():
    """Noise, which has holes and touches the borders; a background alone; a class alone."""
    rng = np.random.default_rng(0)
    masks = {name: rng.integers(0, 4, size).astype(np.uint8) for name, size in SIZES.items()}
    masks["empty"][:], masks["full"][:] = 0, 2
    return masks


MASKS = make_masks()
IDS = {name: number for number, name in enumerate(MASKS, 101)}
FILES = {name: f"{name}.png" for name in MASKS}


def write(dataset, names=tuple(MASKS)):
    for name in names:
        tags = {label: 0.5 + number / 10 for number, label in enumerate(CLASSES)}
        dataset.add(name, Prediction(MASKS[name], CLASSES, np.zeros(3, np.float32), tags, None, None))
    dataset.write()


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "photos"
    for name, mask in MASKS.items():
        (folder / FILES[name]).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*mask.shape, 3), 99, np.uint8)).save(folder / FILES[name])
    return folder


@pytest.fixture
def coco(tmp_path):
    write(CocoDataset(tmp_path, CATEGORIES, IDS, FILES))
    return tmp_path / "annotations" / "instances_default.json"


def expected_masks():
    """Dict from (image id, category id) to the pixels, of the classes in each image."""
    return {
        (IDS[name], CATEGORIES.ids[number - 1]): mask == number
        for name, mask in MASKS.items()
        for number in (1, 2, 3)
        if (mask == number).any()
    }


def assert_equal_masks(found):
    expected = expected_masks()
    assert found.keys() == expected.keys()
    for key, pixels in expected.items():
        np.testing.assert_array_equal(found[key].astype(bool), pixels, err_msg=str(key))


def test_a_whole_coco_file(coco):
    data = COCO(coco)
    assert_equal_masks({(a["image_id"], a["category_id"]): data.annToMask(a) for a in data.anns.values()})
    assert [(i["id"], i["file_name"], (i["height"], i["width"])) for i in data.imgs.values()] == [
        (IDS[name], FILES[name], SIZES[name]) for name in MASKS
    ]
    assert {c["id"]: c["name"] for c in data.cats.values()} == dict(zip(CATEGORIES.ids, CLASSES, strict=True))
    for entry in data.anns.values():
        pixels = expected_masks()[entry["image_id"], entry["category_id"]]
        rows, columns = (np.flatnonzero(pixels.any(axis=axis)) for axis in (1, 0))
        left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        assert entry["bbox"] == [left, top, right - left, bottom - top]
        assert (entry["area"], entry["iscrowd"]) == (pixels.sum(), 0)


def test_a_coco_file_comes_back_as_training_data(coco, images):
    coco.parent.rename(images / "annotations")
    source = CocoFolder(images, "default", with_masks=True)
    assert (source.class_names, source.category_ids) == (CLASSES, CATEGORIES.ids)
    assert source.without_objects == 1
    for index in range(len(source)):
        item = source[index]
        np.testing.assert_array_equal(item["mask"], MASKS[item["id"]])


def test_categories_from_0_get_other_ids(tmp_path):
    """Datumaro takes 0 for no class."""
    write(CocoDataset(tmp_path, CocoCategories(CLASSES, (0, 1, 5)), IDS, FILES))
    content = json.loads((tmp_path / "annotations" / "instances_default.json").read_text())
    assert [(entry["id"], entry["name"]) for entry in content["categories"]] == list(enumerate(CLASSES, 1))
    found = {(entry["image_id"], entry["category_id"]) for entry in content["annotations"]}
    assert found == {(i, 1 + CATEGORIES.ids.index(category)) for i, category in expected_masks()}


def test_a_coco_file_of_no_object_at_all(tmp_path):
    write(CocoDataset(tmp_path, CATEGORIES, IDS, FILES), ["empty"])
    data = COCO(tmp_path / "annotations" / "instances_default.json")
    assert (len(data.imgs), len(data.anns), len(data.cats)) == (1, 0, 3)


def test_results_are_accepted_by_pycocotools(tmp_path, coco, capsys):
    """Image ids were file names, which `loadRes` refuses, and category ids those of the masks."""
    write(CocoResults(tmp_path, CATEGORIES, IDS))
    truth = COCO(coco)
    results = truth.loadRes(str(tmp_path / "coco.json"))
    assert_equal_masks({(a["image_id"], a["category_id"]): truth.annToMask(a) for a in results.anns.values()})
    assert {a["score"] for a in results.anns.values()} == {0.5, 0.6, 0.7}
    write(CocoResults(tmp_path, CATEGORIES, IDS), ["empty"])
    assert json.loads((tmp_path / "coco.json").read_text()) == []
    assert "no object in any image" in capsys.readouterr().err


def test_masks_with_a_label_map(tmp_path):
    write(VocDataset(tmp_path, CLASSES, MASK_VALUES))
    colors = read_label_map([tmp_path], CLASSES)
    for name, mask in MASKS.items():
        with Image.open(tmp_path / "SegmentationClass" / f"{name}.png") as image:
            numbers, pixels = np.asarray(image), np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(numbers, np.array([0, *MASK_VALUES])[mask])
        found = [colors[tuple(color)] for color in pixels.reshape(-1, 3).tolist()]
        np.testing.assert_array_equal(np.reshape(found, mask.shape), mask)
    listed = (tmp_path / "ImageSets" / "Segmentation" / "default.txt").read_text().splitlines()
    assert listed == sorted(MASKS)
    with pytest.raises(UserError, match="found the class 'a:b'"):
        VocDataset(tmp_path, ("a:b",), ())


def reference(tmp_path, files, **content):
    path = tmp_path / "truth.json"
    images = [{"id": number, "file_name": file} for number, file in enumerate(files, 7)]
    path.write_text(json.dumps({"images": images} | content))
    return CocoReference(path)


def test_images_are_matched_by_file_name(tmp_path):
    files = ["train/a.jpg", "val/a.jpg", "val/b.jpg", "/data/upload/c.jpg", "x\\d.jpg", "b.jpg"]
    truth = reference(tmp_path, files)
    assert [truth.image_id(file) for file in ("train/a.jpg", "photos/val/a.jpg", "c.jpg", "d.jpg")] == [
        7,
        8,
        10,
        11,
    ]
    assert truth.image_id("a.jpg") is None  # ambiguous
    assert truth.image_id("b.jpg") == 12
    assert truth.image_id("e.jpg") is None
    assert truth.image_id("val/c.jpg") is None


def test_categories_of_the_file_that_is_compared_with(tmp_path):
    categories = [{"id": 3, "name": "Bee"}, {"id": 0, "name": "ant"}]
    truth = reference(tmp_path, ["a.jpg"], categories=categories)
    assert truth.categories(("ant", "bee")).ids == (0, 3)
    with pytest.raises(UserError, match="expected 'cow' among them"):
        truth.categories(("ant", "cow"))


@pytest.mark.slow
def test_datumaro_loads_the_coco_file(tmp_path, coco):
    datumaro = pytest.importorskip("datumaro")
    found = {}
    for item in datumaro.Dataset.import_from(str(tmp_path), "coco_instances"):
        for entry in item.annotations:
            if entry.type == datumaro.AnnotationType.mask:
                found[int(item.attributes["id"]), CATEGORIES.ids[entry.label]] = entry.image
    assert_equal_masks(found)


@pytest.mark.slow
def test_datumaro_loads_the_masks_with_their_label_map(tmp_path):
    datumaro = pytest.importorskip("datumaro")
    write(VocDataset(tmp_path, CLASSES, MASK_VALUES))
    dataset = datumaro.Dataset.import_from(str(tmp_path), "voc_segmentation")
    labels = [label.name for label in dataset.categories()[datumaro.AnnotationType.label]]
    assert labels == ["background", *CLASSES]
    found = {
        (IDS[item.id], CATEGORIES.ids[entry.label - 1]): entry.image
        for item in dataset
        for entry in item.annotations
        if entry.label
    }
    assert_equal_masks(found)


@pytest.mark.slow
def test_supervision_loads_the_coco_file(coco, images):
    supervision = pytest.importorskip("supervision")
    dataset = supervision.DetectionDataset.from_coco(str(images), str(coco), force_masks=True)
    names = {str(images / file): name for name, file in FILES.items()}
    ids = {name: number for name, number in zip(CLASSES, CATEGORIES.ids, strict=True)}
    found = {
        (IDS[names[path]], ids[dataset.classes[label]]): mask
        for path, _, detections in dataset
        for label, mask in zip(detections.class_id, detections.mask if len(detections) else (), strict=True)
    }
    assert_equal_masks(found)
