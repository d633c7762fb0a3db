"""Masks whose numbers are not what the configuration says: seen before anything is scored, prepared or trained."""

import json

import numpy as np
import pytest
from PIL import Image

from configs import folder, voc
from rml_jax.commands.prepare import prepare
from rml_jax.data.preparation.folder import TaggedFolder
from rml_jax.data.sources import make_source
from rml_jax.report.evaluation import evaluate_masks
from rml_jax.utils.errors import UserError


@pytest.fixture
def cracks(tmp_path):
    """Twelve photographs, half of them with a crack, in binary masks as most tools write them: 0 and 255."""
    for name in ("photos", "masks"):
        (tmp_path / name).mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
        mask = np.zeros((20, 30), np.uint8)
        mask[4:10, 5:15] = 255 * (number % 2)
        Image.fromarray(mask).save(tmp_path / "masks" / f"{number}.png")
    rows = [f"{number}.png,{'crack' if number % 2 else ''}" for number in range(12)]
    (tmp_path / "tags.csv").write_text("\n".join(["image,tags", *rows]))
    (tmp_path / "val.txt").write_text("0\n1\n2\n3\n")
    return tmp_path


def crack_config(root):
    config = folder.get_config()
    config.data.root, config.data.masks = str(root / "photos"), str(root / "masks")
    config.data.tags, config.data.val_list = str(root / "tags.csv"), str(root / "val.txt")
    config.data.class_names = ("crack",)
    return config


def test_scoring_binary_masks_of_255(cracks):
    """They were scored as ignored pixels: 100 % for a network that had learned nothing."""
    config = crack_config(cracks)
    with pytest.raises(UserError, match=r"found no values but 0 .* and 255 .*mask_ignore=-1"):
        evaluate_masks(config, cracks / "run", "val", cracks / "masks")
    config.data.mask_values, config.data.mask_ignore = (255,), -1
    metrics, _ = evaluate_masks(config, cracks / "run", "val", cracks / "masks")
    assert metrics["iou"]["files"]["masks"] == {"background": 1.0, "crack": 1.0}
    assert (metrics["classes_scored"], metrics["pixels_scored"]) == (2, 4 * 20 * 30)
    assert "2,400 pixels of 2 classes" in (cracks / "run" / "eval" / "per_class.md").read_text()
    assert json.loads((cracks / "run" / "eval" / "metrics.json").read_text())["classes_scored"] == 2


def test_scoring_a_class_that_no_mask_holds(cracks):
    config = crack_config(cracks)
    config.data.class_names, config.data.mask_values, config.data.mask_ignore = (
        ("crack", "rust"),
        (255, 1),
        -1,
    )
    with pytest.raises(UserError, match="found rust in none of 4 masks"):
        evaluate_masks(config, cracks / "run", "val", cracks / "masks")
    config.data.allow_absent = True
    metrics, _ = evaluate_masks(config, cracks / "run", "val", cracks / "masks")
    assert metrics["classes_scored"] == 2


def folder_builder(cracks, **options):
    folder_options = {
        "class_names": (),
        "tags_file": str(cracks / "tags.csv"),
        "mask_folder": str(cracks / "masks"),
        "mask_values": (),
        "val_list": str(cracks / "val.txt"),
        "val_fraction": 0.0,
        "seed": 0,
    } | options
    return TaggedFolder(root=cracks / "photos", folder_options=folder_options, data_dir=cracks / "prepared")


def test_preparing_binary_masks_of_255(cracks):
    with pytest.raises(UserError, match=r"found no values but 0 .* in 12 masks"):
        prepare(folder_builder(cracks))
    out, _ = prepare(folder_builder(cracks, mask_values=(255,), mask_ignore=-1))
    config = crack_config(cracks)
    config.data.root, config.data.tags, config.data.masks, config.data.val_list = str(out), "", "", ""
    source = make_source(config.data, "val", with_masks=True)
    assert np.unique(source[1]["mask"]).tolist() == [0, 1]


def test_training_in_vocs_layout_on_binary_masks_of_255(make_voc_folder):
    """Without a tag file the tags come from the masks: no image had any, and nothing was learned."""
    files = make_voc_folder()
    config = voc.get_config()
    config.data.root, config.data.train_split = str(files.root), "train"
    config.data.class_names, config.data.mask_values = ("cat",), (1,)
    for number in range(5):
        mask = files.read_stored_mask(f"train_{number:03d}")
        files.write_mask(f"train_{number:03d}", (mask > 0).astype(np.uint8) * 255)
    with pytest.raises(UserError, match=r"found no values but 0 .* in 5 masks, expected 1 cat; if 255"):
        make_source(config.data, "train", with_masks=False)
    config.data.mask_values, config.data.mask_ignore = (255,), -1
    assert make_source(config.data, "train", with_masks=False)[0]["tags"].tolist() == [1]


def test_colours_of_a_label_map_in_vocs_layout(make_voc_folder):
    """As CVAT exports segmentation masks."""
    files = make_voc_folder()
    colours = {0: (0, 0, 0), 8: (64, 0, 0), 12: (64, 0, 128), 255: (224, 224, 192)}
    expected = make_voc_source(files)[0]["mask"]
    for number in range(5):
        stored = files.read_stored_mask(f"train_{number:03d}")
        pixels = np.zeros((*stored.shape, 3), np.uint8)
        for value, colour in colours.items():
            pixels[stored == value] = colour
        Image.fromarray(pixels).save(files.mask_path(f"train_{number:03d}"))
    (files.root / "labelmap.txt").write_text(
        "background:0,0,0::\ndog:64,0,128::\ncat:64,0,0::\n", encoding="utf-8"
    )
    np.testing.assert_array_equal(make_voc_source(files)[0]["mask"], expected)


def make_voc_source(files):
    config = voc.get_config()
    config.data.root = str(files.root)
    config.data.class_names, config.data.mask_values = files.class_names, files.mask_values
    return make_source(config.data, "train", with_masks=True)
