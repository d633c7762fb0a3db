"""The arrangement of the defect data sets in VOC's layout, on a few images of their form."""

import numpy as np
import pytest
from PIL import Image

from experiments import defect_data
from rml_jax.data.sources.voc import VocFolder


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def grey():
    return np.full((12, 16), 90, np.uint8)


def test_neu_seg_keeps_parts_and_classes_apart(tmp_path, grey):
    for part, value in (("training", 1), ("test", 3)):
        mask = np.zeros_like(grey)
        mask[:4, :4] = value
        save(tmp_path / f"clone/images/{part}/000001.jpg", grey)
        save(tmp_path / f"clone/annotations/{part}/000001.png", mask)
    defect_data.main(["neu_seg", str(tmp_path / "clone"), f"--out={tmp_path / 'out'}"])
    for split, name, tags in (("train", "training_000001", [1, 0, 0]), ("test", "test_000001", [0, 0, 1])):
        source = VocFolder(
            tmp_path / "out", split, defect_data.CLASSES["neu_seg"], (1, 2, 3), with_masks=True
        )
        assert [item["id"] for item in source] == [name]
        assert source[0]["tags"].tolist() == tags
        assert (source[0]["mask"] > 0).sum() == 16
    assert (tmp_path / "out" / "tags.csv").read_text() == "image,tags\ntraining_000001.jpg,inclusion\n"


def test_magnetic_tiles_get_their_folders_class_and_one_fixed_division(tmp_path, grey):
    mask = np.zeros_like(grey)
    mask[:2], mask[2] = 255, 100  # The third row is below half.
    for folder, count in (("MT_Free", 20), ("MT_Crack", 20)):
        for number in range(count):
            name = tmp_path / f"clone/{folder}/Imgs/{folder}_{number}"
            save(name.with_suffix(".jpg"), grey)
            save(name.with_suffix(".png"), mask if folder == "MT_Crack" else np.zeros_like(mask))
    names = {}
    for out in ("first", "second"):
        defect_data.main(["magnetic_tiles", str(tmp_path / "clone"), f"--out={tmp_path / out}"])
        lists = {part: tmp_path / out / f"ImageSets/Segmentation/{part}.txt" for part in ("train", "test")}
        names[out] = {part: path.read_text().split() for part, path in lists.items()}
    assert names["first"] == names["second"]
    assert len(names["first"]["train"]) + len(names["first"]["test"]) == 40
    assert 1 <= len(names["first"]["test"]) <= 16
    classes = defect_data.CLASSES["magnetic_tiles"]
    source = VocFolder(tmp_path / "first", "train", classes, (1, 2, 3, 4, 5), with_masks=True)
    for item in source:
        cracked = item["id"].startswith("MT_Crack")
        assert np.unique(item["mask"]).tolist() == ([0, 3] if cracked else [0])
        assert (item["mask"] == 3).sum() == (32 if cracked else 0)


def test_an_existing_folder_is_not_touched(tmp_path, grey, capsys):
    save(tmp_path / "clone/MT_Free/Imgs/a.jpg", grey)
    save(tmp_path / "clone/MT_Free/Imgs/a.png", grey * 0)
    (tmp_path / "out").mkdir()
    with pytest.raises(SystemExit):
        defect_data.main(["magnetic_tiles", str(tmp_path / "clone"), f"--out={tmp_path / 'out'}"])
    assert "out exists, expected a new folder" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())
