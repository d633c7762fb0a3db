"""COCO in miniature: outlines in all three forms, crowds, numbers with gaps, and files that are not COCO's."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from rml_jax.data.sources.coco import CocoFolder, draw_mask
from rml_jax.utils.errors import UserError
from tests.data.archives import polygon, thing

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


def test_tags_count_crowds_and_a_training_source_keeps_no_outline(coco):
    source = CocoFolder(coco[0], "val2014")
    item = source[0]
    assert set(item) == {"id", "image", "tags"}
    assert item["id"] == "COCO_val2014_000000000001"
    assert np.flatnonzero(item["tags"]).tolist() == [0, 11, 79]
    assert source.class_names[11] == "stop sign"
    assert item["image"].shape == (*SIZE, 3)
    assert all(outlines is None for *_, outlines in source._images)


def test_broken_folders(coco):
    root, path, content = coco
    (root / "val2014" / "three.jpg").unlink()
    assert f"no image {root / 'val2014' / 'three.jpg'} (missing for 1 of 2 images)" in message_of(root)
    content["annotations"] = content["annotations"][:3]
    content["images"][0]["width"] = 31
    path.write_text(json.dumps(content))
    assert "COCO_val2014_000000000001.jpg: found 30x20 pixels, expected 31x20" in message_of(root)
    content["annotations"][0]["category_id"] = 12  # One of the gaps.
    path.write_text(json.dumps(content))
    assert f"{path}: found KeyError(12), expected COCO's instance annotations" in message_of(root)
    path.write_text(json.dumps(content | {"annotations": []}))
    assert f"{path}: found no image with an object" in message_of(root)
    path.write_text('{"images": [')
    assert f"{path}: found JSONDecodeError" in message_of(root)
    path.unlink()
    assert f"{path}: No such file" in message_of(root)


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
