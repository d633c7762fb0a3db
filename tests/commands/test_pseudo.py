"""The command `rml-jax pseudo`: masks of the training images for a second stage."""

import json

import numpy as np
import pytest
from flax import nnx
from PIL import Image

import rml_jax
from rml_jax.commands.pseudo import main
from rml_jax.config import default_config, load_config
from rml_jax.data.sources import make_source
from rml_jax.inference.export import weights
from rml_jax.inference.export.checksums import write_sums
from rml_jax.inference.pseudo import join_thresholds
from rml_jax.models import build as build_module
from rml_jax.ops.contrast import OFFSETS

HIGH, LOW = 0.5, 0.2


@pytest.fixture
def model(build, make_voc_folder, tmp_path):
    """The folder of an exported model of a VOC folder's two classes."""
    files = make_voc_folder(train=5)
    config = default_config()
    config.data.name = config.data.source = "voc"
    config.data.root = str(files.root)
    config.data.class_names, config.data.mask_values = files.class_names, files.mask_values
    config.model.variant = "mini"
    config.cam.scales, config.cam.flip = (1.0,), False
    config.pseudo_label.high, config.pseudo_label.low = HIGH, LOW
    config.pseudo_label.dilations, config.pseudo_label.iterations = (1, 2), 2
    # Some images fit on no canvas and are reduced.
    config.eval.canvases, config.eval.batch_size = ((32, 40),), 4
    config.train.crop_size = 32
    _, params = nnx.split(build(lambda: build_module.build_model(config, seed=0)))
    folder = tmp_path / "model"
    folder.mkdir()
    weights.write_model(folder, config, params, step=7)
    write_sums(folder, weights.FILES)
    return folder


def read(out, name):
    with Image.open(out / "SegmentationClass" / f"{name}.png") as image:
        assert image.mode == "P"
        return np.asarray(image)


def test_region_contrast_moves_both_scores_of_an_image(model, tmp_path):
    """Each mask is one that two scores with the configured distance give; not all images have the configured ones."""
    out = tmp_path / "out"
    main([f"--workdir={model}", f"--out={out}", "--config.pseudo_label.region_contrast=3000.0"])
    data, half = load_config(model / "config.json").data, (HIGH - LOW) / 2
    source, moved = make_source(data, "train", with_masks=False), set()
    middles = [round((HIGH + LOW) / 2 + offset, 4) for offset in OFFSETS]
    at = {
        score: rml_jax.load(model, stage="par", background=score, large="reduce")
        for middle in middles
        if 0 < middle < 1
        for score in (max(0, round(middle - half, 4)), round(middle + half, 4))
    }
    for item in (source[index] for index in range(len(source))):
        tags = [name for name, tag in zip(source.class_names, item["tags"], strict=True) if tag]
        masks = {score: one(item["image"], tags=tags).mask for score, one in at.items()}
        numbers = np.array([0, *data.mask_values, *[255] * 253], np.uint8)
        fitting = {
            middle
            for middle in middles
            if 0 < middle < 1
            and np.array_equal(
                read(out, item["id"]),
                numbers[
                    join_thresholds(masks[round(middle + half, 4)], masks[max(0, round(middle - half, 4))])
                ],
            )
        }
        assert fitting
        moved |= {item["id"]} if (HIGH + LOW) / 2 not in fitting else set()
    assert moved
    record = json.loads((out / "pseudo-train.json").read_text())
    assert record["region_contrast"] == 3000


def test_masks_are_joined_from_predictions_with_given_tags(model, tmp_path):
    out = tmp_path / "out"
    main([f"--workdir={model}", f"--out={out}", "--save_images"])
    data = load_config(model / "config.json").data
    against_high, against_low = (
        rml_jax.load(model, stage="par", background=score, large="reduce") for score in (HIGH, LOW)
    )
    found = set()
    source = make_source(data, "train", with_masks=False)
    for item in (source[index] for index in range(len(source))):
        tags = [name for name, tag in zip(source.class_names, item["tags"], strict=True) if tag]
        high, low = (one(item["image"], tags=tags).mask for one in (against_high, against_low))
        expected = np.full(high.shape, 255)
        expected[(high == 0) & (low == 0)] = 0
        expected[high == 1], expected[high == 2] = data.mask_values
        np.testing.assert_array_equal(read(out, item["id"]), expected)
        found |= set(expected.ravel().tolist())
    assert {0, 255} < found, "the test has unsure pixels"
    ids = [f"train_{number:03d}" for number in range(5)]
    assert (out / "ImageSets/Segmentation/train.txt").read_text().split() == ids
    assert (out / "labelmap.txt").read_text().splitlines()[1:] == [
        "background:0,0,0::",
        "cat:64,0,0::",
        "dog:64,0,128::",
    ]
    # What reads VOC's layout reads this.
    data.root, data.masks = str(out), "SegmentationClass"
    again = make_source(data, "train", with_masks=True)
    for index in range(len(source)):
        assert again[index]["id"] == source[index]["id"]
        assert again[index]["image"].shape == source[index]["image"].shape


def test_255_is_unsure_where_it_is_a_class_of_the_data(model, tmp_path):
    """Binary masks of 0 and 255 have the class 255: the masks written number the classes 1..C."""
    out = tmp_path / "out"
    arguments = [f"--workdir={model}", f"--out={tmp_path / 'usual'}"]
    main(arguments)
    for path in (tmp_path / "voc" / "SegmentationClassAug").iterdir():
        with Image.open(path) as image:
            mask = np.asarray(image)
        Image.fromarray(np.uint8([0, 8, 255])[np.searchsorted([0, 8, 12], mask % 255)]).save(path)
    main(
        [*arguments[:1], f"--out={out}", "--config.data.mask_values=(8,255)", "--config.data.mask_ignore=-1"]
    )
    numbers = np.arange(256)
    numbers[[8, 12]] = 1, 2
    found = set()
    for number in range(5):
        name = f"train_{number:03d}"
        np.testing.assert_array_equal(read(out, name), numbers[read(tmp_path / "usual", name)])
        found |= set(read(out, name).ravel().tolist())
    assert found == {0, 1, 2, 255}
    assert json.loads((out / "pseudo-train.json").read_text())["mask_values"] == []
    assert "dog:0,128,0::" in (out / "labelmap.txt").read_text()


def test_a_stopped_command_goes_on_with_what_is_missing(model, tmp_path):
    out = tmp_path / "out"
    arguments = [f"--workdir={model}", f"--out={out}"]
    main(arguments)
    masks = {path: path.read_bytes() for path in (out / "SegmentationClass").iterdir()}
    lost = out / "SegmentationClass" / "train_001.png"
    lost.unlink()
    (out / "ImageSets/Segmentation/train.txt").unlink()
    kept = {path: path.stat().st_mtime_ns for path in masks if path != lost}
    main(arguments)
    assert {path: path.read_bytes() for path in (out / "SegmentationClass").iterdir()} == masks
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len((out / "ImageSets/Segmentation/train.txt").read_text().split()) == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--config.pseudo_label.high=0.6"], "found masks made with high 0.5, expected 0.6 or another --out"),
        (["--stage=cam"], "found masks made with stage 'par', expected 'cam'"),
        (["--stage=best"], "eval.stages"),
        (["--split=test"], "test"),
    ],
)
def test_mistakes_are_one_line(model, tmp_path, capsys, options, words):
    out = tmp_path / "out"
    main([f"--workdir={model}", f"--out={out}"])
    with pytest.raises(SystemExit) as left:
        main([f"--workdir={model}", f"--out={out}", *options])
    assert left.value.code == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[-1].startswith("error: ")
    assert words in errors[-1]


def test_a_folder_with_other_files_is_refused(model, tmp_path, capsys):
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(SystemExit):
        main([f"--workdir={model}", f"--out={tmp_path}"])
    assert (
        "found files in it, expected a new or empty folder, or one to go on with" in capsys.readouterr().err
    )
    assert not (tmp_path / "SegmentationClass").exists()


def test_record_names_what_made_the_masks(model, tmp_path):
    main([f"--workdir={model}", f"--out={tmp_path / 'out'}", "--split=val"])
    record = json.loads((tmp_path / "out" / "pseudo-val.json").read_text())
    assert (record["step"], record["stage"], record["high"], record["low"]) == (7, "par", HIGH, LOW)
    assert len((tmp_path / "out/ImageSets/Segmentation/val.txt").read_text().split()) == 3


def test_join_thresholds():
    high, low = np.uint8([[0, 0, 2, 1, 254, 0]]), np.uint8([[0, 3, 2, 2, 1, 254]])
    joined = join_thresholds(high, low)
    np.testing.assert_array_equal(joined, [[0, 255, 2, 1, 254, 255]])
    assert joined.dtype == np.uint8
