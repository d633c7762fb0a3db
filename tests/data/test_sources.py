"""Sources by name."""

import pytest
from ml_collections import ConfigDict

from rml_jax.commands.prepare import prepare
from rml_jax.data.preparation.voc import VocSbd
from rml_jax.data.sources import has_masks, make_source, with_class_names
from rml_jax.utils.errors import UserError
from tests.data import archives


def data_config(**changes):
    return ConfigDict(
        {
            "source": "digits",
            "root": "",
            "tags": "",
            "class_names": (),
            "mask_values": (),
            "mask_ignore": 255,
            "allow_absent": False,
            "masks": "",
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


@pytest.mark.parametrize("open_it", [lambda data: make_source(data, "train", with_masks=False), has_masks])
def test_unknown_source(open_it):
    with pytest.raises(
        UserError, match=r"config\.data\.source is 'cityscapes': expected one of digits, voc, coco, folder"
    ):
        open_it(data_config(source="cityscapes"))


def test_voc_without_a_root():
    with pytest.raises(UserError, match=r"config\.data\.root is empty: .*JPEGImages"):
        make_source(data_config(source="voc"), "train", with_masks=False)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """VOC and SBD in miniature, prepared: the folder."""
    root = tmp_path_factory.mktemp("voc")
    archives.pack_sbd(archives.pack_voc(root / "archives"))
    return str(prepare(VocSbd(manual_dir=root / "archives", data_dir=root / "out"))[0])


@pytest.mark.parametrize("kind", ["voc", "folder"])
def test_prepared_data_goes_before_a_folder(prepared, kind):
    config = data_config(source=kind, root=prepared, class_names=("aeroplane", "tvmonitor"))
    source = make_source(config, "train_aug", with_masks=True)
    assert source.class_names == ("aeroplane", "tvmonitor")
    assert [source[index]["tags"].tolist() for index in (0, 3)] == [[1, 0], [0, 1]]
    assert source[3]["mask"].max() == 2


def test_folders_with_a_report_of_their_own_are_no_prepared_data(make_voc_folder, monkeypatch):
    files = make_voc_folder()
    monkeypatch.chdir(files.root)
    (files.root / "report.json").write_text("{}")
    assert len(make_source(voc_config(files), "train", with_masks=False)) == 5
    assert len(make_source(data_config(), "train", with_masks=False)) == 5


def test_prepared_data_has_its_classes(prepared):
    config = ConfigDict({"data": data_config(source="folder", root=prepared)})
    assert with_class_names(config).data.class_names[::19] == ("aeroplane", "tvmonitor")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"source": "folder", "masks": ""}, False),
        ({"source": "folder", "masks": "MASKS"}, True),
        ({"source": "folder", "masks": "", "root": "prepared"}, True),
        ({"source": "folder", "masks": "", "root": "prepared", "val_split": "no such split"}, False),
    ],
)
def test_whether_there_are_masks_to_score_by(prepared, changes, expected):
    config = data_config(**changes)
    config.root = config.root and prepared
    assert has_masks(config) is expected


@pytest.mark.parametrize("key", ["tags", "masks", "val_list"])
def test_prepared_data_takes_no_second_set_of_tags(prepared, key):
    with pytest.raises(UserError, match=rf"config\.data\.{key} is 'other': expected nothing"):
        make_source(data_config(source="folder", root=prepared, **{key: "other"}), "val", with_masks=False)
