"""Folders that are parts of a data set, masks, or belong to a system, beside those that name tags."""

import os

import numpy as np
import pytest
from PIL import Image

from rml_jax.data.sources.folder import PhotoFolder, find_images, folder_classes
from tests.data.test_folder import ids, message_of, write_photos


def both_parts(root, **options):
    return [ids(PhotoFolder(root, is_training, **options)) for is_training in (True, False)]


@pytest.mark.parametrize(
    ("train", "val"), [("train", "val"), ("Training", "Validation"), ("TRAIN", "valid"), ("train", "Val")]
)
def test_split_folders_are_the_parts_and_name_no_class(tmp_path, train, val):
    names = [f"{train}/cat/1", f"{train}/dog/2", f"{val}/cat/3", f"{val}/dog/4", "Test/cat/5", "Test/owl/6"]
    root = write_photos(tmp_path, [f"{name}.jpg" for name in names])
    source = PhotoFolder(root, True)
    assert folder_classes(root) == source.class_names == ("cat", "dog")
    assert both_parts(root) == [names[:2], names[2:4]]
    assert [source[i]["tags"].tolist() for i in range(2)] == [[1, 0], [0, 1]]
    assert source.notes == ["folders of parts: test 2, train 2, val 2; test is not used"]
    assert source.untagged == 0


def test_split_folders_with_a_tag_file_and_with_a_list(tmp_path):
    names = ["train/1", "train/2", "train/3", "val/4", "test/5"]
    root = write_photos(tmp_path / "photos", [f"{name}.jpg" for name in names])
    tags = tmp_path / "tags.csv"
    tags.write_text("image,tags\n" + "".join(f"{name},cat\n" for name in names))
    assert both_parts(root, tags_file=tags) == [names[:3], names[3:4]]
    (tmp_path / "val.txt").write_text("train/2\n")
    assert both_parts(root, tags_file=tags, val_list=tmp_path / "val.txt") == [
        ["train/1", "train/3", "val/4"],
        ["train/2"],
    ]


def test_validation_is_drawn_where_only_a_training_folder_is_there(tmp_path):
    root = write_photos(
        tmp_path, [f"train/{tag}/{number}.jpg" for tag in ("cat", "dog") for number in range(5)]
    )
    train, val = both_parts(root, val_fraction=0.3)
    assert (len(train), len(val)) == (7, 3)
    assert "val is drawn from train" in PhotoFolder(root, True).notes[0]


def test_folders_of_trains_are_a_class(tmp_path):
    root = write_photos(tmp_path, ["train/1.jpg", "car/2.jpg", "car/val/3.jpg"])
    assert folder_classes(root) == ("car", "train")
    root = write_photos(tmp_path / "named", ["train/1.jpg", "test/2.jpg"])
    source = PhotoFolder(root, True, ("train", "test"), val_fraction=0.0)
    assert ids(source) == ["test/2", "train/1"]
    assert "found no tags" in message_of(folder_classes, root)


def test_system_folders_are_left_out(tmp_path):
    names = [
        "cat/1.jpg",
        "dog/1.jpg",
        "__MACOSX/cat/1.jpg",
        "@eaDir/2.jpg",
        "cat/@eaDir/3.jpg",
        ".ipynb_checkpoints/4.jpg",
    ]
    root = write_photos(tmp_path, names)
    assert list(find_images(root)) == ["cat/1", "dog/1"]
    assert folder_classes(root) == ("cat", "dog")


@pytest.mark.parametrize("name", ["masks", "Masks", "annotations", "SegmentationClass", "labels", "mask"])
def test_folder_of_masks_beside_class_folders_is_no_class(tmp_path, name):
    root = write_photos(tmp_path, ["cat/1.jpg", "dog/2.jpg"])
    (root / name).mkdir()
    for number in (1, 2):
        Image.fromarray(np.full((24, 16), number, np.uint8)).save(root / name / f"m{number}.png")
    source = PhotoFolder(root, True, val_fraction=0.0)
    assert source.class_names == ("cat", "dog")
    assert ids(source) == ["cat/1", "dog/2"]
    assert source.notes == [f"folders that name no tag (images left out): {name} 2"]
    assert source.untagged == 0


def test_folder_with_the_images_of_other_folders_is_no_class(tmp_path):
    assert folder_classes(
        write_photos(tmp_path, ["cat/1.jpg", "dog/2.jpg", "labels/1.png", "labels/2.png"])
    ) == ("cat", "dog")


def test_class_that_is_called_like_a_folder_of_masks(tmp_path):
    root = write_photos(tmp_path, ["mask/1.jpg", "no mask/2.jpg", "masks/3.jpg"])
    assert folder_classes(root) == ("mask", "no mask")
    source = PhotoFolder(root, True, ("masks", "mask", "no mask"), val_fraction=0.0)
    assert ids(source) == ["mask/1", "masks/3", "no mask/2"]
    assert source.notes == []


def test_files_that_are_not_read_are_counted_by_suffix(tmp_path):
    root = write_photos(tmp_path, ["cat/1.jpg"])
    for name in ("cat/2.XYZ", "cat/3.xyz", "notes.txt", "README", ".hidden"):
        (root / name).touch()
    assert PhotoFolder(root, True, val_fraction=0.0).notes == [
        "4 files without an image's suffix (no suffix 1, .txt 1, .xyz 2)"
    ]


def test_file_name_that_is_no_utf_8(tmp_path):
    root = write_photos(tmp_path, ["cat/1.jpg", "cat/2.jpg"])
    (root / "cat/2.jpg").rename(root / "cat" / os.fsdecode(b"caf\xe9.jpg"))
    source = PhotoFolder(root, True, val_fraction=0.0)
    assert [source[number]["id"] for number in range(2)] == ["cat/1", "cat/caf%E9"]


def test_copies_in_folders_of_parts(tmp_path, capsys):
    root = write_photos(tmp_path, ["train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg"])
    for copy in ("train/dog/1.jpg", "val/dog/3.jpg", "train/cat/9.jpg"):
        (root / copy).parent.mkdir(exist_ok=True)
    (root / "train/dog/1.jpg").write_bytes((root / "train/cat/1.jpg").read_bytes())
    (root / "val/dog/3.jpg").write_bytes((root / "val/cat/3.jpg").read_bytes())
    (root / "train/cat/9.jpg").write_bytes((root / "val/cat/3.jpg").read_bytes())
    assert both_parts(root) == [["train/cat/1", "train/dog/2"], ["val/cat/3"]]
    assert PhotoFolder(root, True)[0]["tags"].tolist() == [1, 1]
    assert PhotoFolder(root, False)[0]["tags"].tolist() == [1, 1]
    assert "val folder: 1 other images are identical" in capsys.readouterr().err
