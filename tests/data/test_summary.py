"""What is said of a data set before the first step, and the number of slots that follows from it."""

import numpy as np
import pytest

from configs import digits, folder, voc_animals
from rml_jax.data.sources import make_source, with_class_names
from rml_jax.data.summary import data_summary, validation_source, with_slots
from tests.data.test_folder import write_photos


@pytest.fixture
def make_config(tmp_path):
    """Function (tags of each image, numbers of validation images) -> config of a folder of these images."""

    def make(tags, val=()):
        root = write_photos(tmp_path / "photos", [f"{number}.jpg" for number in range(len(tags))])
        rows = [f"{number},{'|'.join(own)}\n" for number, own in enumerate(tags) if own is not None]
        (tmp_path / "tags.csv").write_text("image,tags\n" + "".join(rows))
        (tmp_path / "val.txt").write_text("\n".join(map(str, val)))
        config = folder.get_config()
        config.data.root, config.data.tags = str(root), str(tmp_path / "tags.csv")
        config.data.val_list = str(tmp_path / "val.txt") if val else ""
        config.data.val_fraction = 0.0
        return with_class_names(config)

    return make


def summary_of(config):
    source = make_source(config.data, "train", with_masks=False)
    return data_summary(config, source, validation_source(config))


def test_table_of_a_folder(make_config, tmp_path):
    config = make_config([["cat"], ["cat", "dog"], ["dog"], [], ["cat"], None], val=(2, 3))
    (tmp_path / "photos" / "6.xyz").touch()
    assert [line.split() for line in summary_of(config)[:6]] == [
        ["data:", "folder,", "2", "classes"],
        ["train", "val"],
        ["cat", "3", "0"],
        ["dog", "1", "1"],
        ["(without", "tags)", "0", "1"],
        ["images", "3", "2"],
    ]
    assert summary_of(config)[6:] == [
        "  images that are left out, as no tags are given for them: 1",
        "  1 file without an image's suffix (.xyz 1)",
        "warning: classes with 0 or 1 training images, which can't be learned: dog 1",
    ]


@pytest.mark.parametrize(
    ("tags", "warnings"),
    [
        ([["cat"]] * 3 + [["dog"]] * 3, []),
        ([["cat"], ["cat"], ["dog"]], ["classes with 0 or 1 training images"]),
        ([["cat"], ["cat"], []], ["there is one class only", "1 of 3 training images have no tag"]),
        ([["cat"]] * 5 + [[]], ["there is one class only"]),
        ([["cat", "dog"]] * 3, ["all training images have the same tags"]),
        ([["nan"]] * 3 + [["dog"]] * 3, ["found the class 'nan'"]),
        ([["3"]] * 3 + [["1"]] * 3, ["the classes are called by numbers: 1, 3"]),
    ],
)
def test_warnings_of_what_looks_wrong(make_config, tags, warnings):
    found = [line for line in summary_of(make_config(tags)) if line.startswith("warning: ")]
    assert [any(part in line for line in found) for part in warnings] == [True] * len(warnings)
    assert len(found) == len(warnings)


@pytest.mark.parametrize(("most", "slots"), [(1, 8), (8, 8), (9, 16), (11, 16), (17, 32)])
def test_no_tag_is_left_out_for_lack_of_slots(make_config, most, slots):
    names = [f"tag {number:02d}" for number in range(20)]
    config = make_config([names[:most], names[most:][:2], [names[0]]])
    source = make_source(config.data, "train", with_masks=False)
    assert with_slots(config, source).pseudo_label.slots == slots
    assert (with_slots(config, source) is config) == (slots == 8)
    raised = [line for line in summary_of(config) if "pseudo_label.slots" in line]
    assert raised == ([] if slots == 8 else [f"  pseudo_label.slots: {slots}, as an image has {most} tags"])


def test_slots_of_generated_scenes(make_voc_folder):
    config = digits.get_config()
    assert with_slots(config, make_source(config.data, "train", with_masks=False)) is config
    config.data.scene.digits = (1, 3)
    assert with_slots(config, make_source(config.data, "train", with_masks=False)).pseudo_label.slots == 4


def test_tags_from_masks_are_counted_by_the_images_they_are_in(make_voc_folder):
    files = make_voc_folder(train=4)
    mask = np.zeros_like(files.read_stored_mask("train_001"))
    files.write_mask("train_001", mask)
    files.mask_path("train_002").write_bytes(b"")
    config = voc_animals.get_config()
    config.data.root, config.data.skip_bad, config.data.allow_absent = str(files.root), True, True
    config.data.class_names, config.data.mask_values = files.class_names, files.mask_values
    source = make_source(config.data, "train", with_masks=False)
    tags = np.array([source[number]["tags"] for number in (0, 1, 3)]).sum(axis=0).astype(int).tolist()
    lines = [line.split() for line in summary_of(config)]
    assert [int(row[1]) for row in lines[2:4]] == tags
    assert lines[4][:3] == ["(without", "tags)", "1"]
    assert lines[5][:2] == ["images", "4"]
