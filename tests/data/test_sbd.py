"""SBD in miniature, its .mat files as its authors made them: the list, the masks, and what is wrong in an archive."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from rml_jax.data.preparation.sbd import add_sbd
from rml_jax.data.sources.voc import VocFolder
from rml_jax.utils.errors import UserError

CLASSES = [f"class{number}" for number in range(1, 21)]


@pytest.fixture
def archives(tmp_path):
    """VOC: train a, b; val v, w. SBD: train b, c, w; val d. Each mask is of one class, VOC's 1 and SBD's 20."""
    voc, sbd = tmp_path / "VOC2012", tmp_path / "benchmark_RELEASE"
    for folder in (
        voc / "JPEGImages",
        voc / "SegmentationClass",
        voc / "ImageSets/Segmentation",
        sbd / "dataset/cls",
    ):
        folder.mkdir(parents=True)
    for name in "abcdvw":
        Image.new("RGB", (12, 10)).save(voc / "JPEGImages" / f"{name}.jpg")
    for name in "abvw":
        Image.new("L", (12, 10), 1).save(voc / "SegmentationClass" / f"{name}.png")
    for name in "bcdw":
        content = {"Segmentation": np.full((10, 12), 20, np.uint8), "CategoriesPresent": np.uint8([20])}
        savemat(sbd / "dataset/cls" / f"{name}.mat", {"GTcls": content})
    (voc / "ImageSets/Segmentation/train.txt").write_text("a\nb\n")
    (voc / "ImageSets/Segmentation/val.txt").write_text("v\nw\n")
    (sbd / "dataset/train.txt").write_text("b\nc\nw\n")
    (sbd / "dataset/val.txt").write_text("d\n")
    return voc, sbd


def masks(voc):
    return {path.name: path.read_bytes() for path in (voc / "SegmentationClassAug").iterdir()}


def test_the_usual_training_set(archives):
    voc, sbd = archives
    lines = add_sbd(voc, sbd)
    assert (voc / "ImageSets/Segmentation/train_aug.txt").read_text() == "a\nb\nc\nd\n"
    assert lines[:3] == [
        "train: 2 images (officially 1464)",
        "train_aug: 4 images (officially 10582)",
        "val: 2 images (officially 1449)",
    ]
    assert lines[3] == "images per class 1 to 20: 4, " + "0, " * 18 + "2"
    source = VocFolder(voc, "train_aug", CLASSES, range(1, 21), with_masks=True)
    assert [int(source[i]["mask"][0, 0]) for i in range(4)] == [1, 1, 20, 20]
    assert len(VocFolder(voc, "val", CLASSES, range(1, 21), with_masks=True)) == 2


def test_a_second_start_keeps_what_is_there(archives):
    voc, sbd = archives
    add_sbd(voc, sbd)
    before = masks(voc)
    (voc / "SegmentationClassAug" / "c.png").unlink()
    (sbd / "dataset/cls/d.mat").unlink()
    add_sbd(voc, sbd / "dataset")
    assert masks(voc) == before


def test_bad_files_are_left_out_or_stop_it(archives):
    voc, sbd = archives
    (sbd / "dataset/cls/c.mat").write_bytes(b"no mat")
    (voc / "JPEGImages" / "d.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="2 of 6 images are bad, such as"):
        add_sbd(voc, sbd)
    assert not (voc / "ImageSets/Segmentation/train_aug.txt").exists()
    lines = add_sbd(voc, sbd, max_bad=0.5)
    assert (voc / "ImageSets/Segmentation/train_aug.txt").read_text() == "a\nb\n"
    assert str(sbd / "dataset/cls/c.mat") in lines[4]
    assert f"{voc / 'JPEGImages' / 'd.jpg'}: found an empty file" in lines[5]


def test_full_disk(archives, monkeypatch):
    voc, sbd = archives
    write = Path.write_bytes

    def fill(path, data):
        write(path, data[:5])
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(UserError, match="No space left on device"):
        add_sbd(voc, sbd)
    assert masks(voc) == {}


def test_folders_that_are_not_sbd(archives, tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path / 'train.txt'}: No such file"):
        add_sbd(archives[0], tmp_path)
