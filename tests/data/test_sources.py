"""Sources by name."""

import pytest
from ml_collections import ConfigDict

from rml_jax.data.sources import make_source
from rml_jax.errors import UserError


def data_config(**changes):
    return ConfigDict(
        {
            "source": "digits",
            "root": "",
            "tags": "",
            "class_names": (),
            "mask_values": (),
            "train_split": "train",
            "val_split": "val",
            "num_train": 5,
            "num_val": 3,
            "seed": 0,
            "skip_bad": False,
            "scene": {"size": 48, "digit_size": (20, 32)},
        }
        | changes
    )


def voc_config(files, **changes):
    changes = {"class_names": files.class_names, "mask_values": files.mask_values} | changes
    return data_config(source="voc", root=str(files.root), **changes)


@pytest.mark.parametrize(("split", "length"), [("train", 5), ("val", 3)])
def test_digits(split, length):
    source = make_source(data_config(), split, with_masks=split == "val")
    assert len(source) == length
    assert source[0]["image"].shape == (48, 48, 3)
    assert ("mask" in source[0]) == (split == "val")


@pytest.mark.parametrize(("split", "length"), [("train", 5), ("val", 3)])
def test_voc(make_voc_folder, split, length):
    source = make_source(voc_config(make_voc_folder()), split, with_masks=split == "val")
    assert len(source) == length
    assert source.class_names == ("cat", "dog")
    assert ("mask" in source[0]) == (split == "val")


def test_voc_with_a_tag_file(make_voc_folder, tmp_path):
    tags_file = tmp_path / "tags.csv"
    tags_file.write_text("image,tags\ntrain_000,dog\n")
    source = make_source(voc_config(make_voc_folder(), tags=str(tags_file)), "train", with_masks=False)
    assert source[0]["tags"].tolist() == [0, 1]


def test_unknown_source():
    with pytest.raises(
        UserError, match=r"config\.data\.source is 'cityscapes': expected one of digits, voc, coco, folder"
    ):
        make_source(data_config(source="cityscapes"), "train", with_masks=False)


def test_voc_without_a_root():
    with pytest.raises(UserError, match=r"config\.data\.root is empty: .*JPEGImages"):
        make_source(data_config(source="voc"), "train", with_masks=False)
