"""Scoring weights from elsewhere; the scores of a training run's checkpoint are in tests/training/test_loop.py."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from configs import digits
from configs import folder as folder_config
from rml_jax.data.sources import make_source
from rml_jax.evaluation import run
from rml_jax.evaluation.masks import MaskFolder, MaskWriter
from rml_jax.models import BACKBONES
from rml_jax.models.weights import convert
from rml_jax.report import score_table
from rml_jax.report.evaluation import evaluate_masks, evaluate_run
from rml_jax.report.scores import background_flags
from rml_jax.utils.errors import UserError

MINI = BACKBONES["mini"]()
CLASSES = 10


def tiny_config(*stages):
    config = digits.get_config()
    config.data.num_train, config.data.num_val = 2, 3
    config.data.scene.size, config.data.scene.digit_size = 32, (14, 20)
    config.train.crop_size = 32
    config.pseudo_label.dilations, config.pseudo_label.iterations = (1, 2), 2
    config.eval.canvases, config.eval.batch_size, config.eval.pictures = ((32, 32),), 3, 1
    config.eval.stages = stages or ("cam", "affinity", "par", "par+crf")
    config.eval.sweep.grid = (0.1, 0.3)
    return config


@pytest.fixture(scope="module")
def peer(original_layout):
    """The weights of an AFA-style PyTorch model."""
    rng = np.random.default_rng(1)
    tensors = {f"module.encoder.{name}": tensor for name, tensor in original_layout(MINI).items()} | {
        "module.classifier.weight": rng.standard_normal((CLASSES, MINI.embed_dims[3], 1, 1), np.float32),
        "module.attn_proj.weight": 0.1 * rng.standard_normal((1, 2 * MINI.num_heads[3], 1, 1), np.float32),
        "module.attn_proj.bias": np.zeros(1, np.float32),
        "module.decoder.linear_pred.weight": np.zeros((11, 4, 1, 1), np.float32),
    }
    return {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}


def save_without(tensors, names, path):
    torch.save({name: tensor for name, tensor in tensors.items() if not name.endswith(names)}, path)
    return str(path)


@pytest.fixture(scope="module")
def scored(peer, tmp_path_factory):
    """The file of weights, the work directory, what came out of scoring it, and what was printed."""
    folder = tmp_path_factory.mktemp("scored")
    weights, workdir = str(folder / "peer.pth"), folder / "new" / "workdir"
    torch.save({"state_dict": peer, "iteration": 9}, weights)
    config = tiny_config()
    config.eval.sweep.split, config.eval.sweep.images = "train", 1
    return weights, workdir, *evaluate_run(config, workdir, "val", weights, save_masks=True)


def test_weights_of_a_peer_are_scored(scored):
    weights, workdir, metrics, page = scored
    assert json.loads((workdir / "eval" / "metrics.json").read_text()) == metrics
    assert (metrics["dataset"], metrics["split"], metrics["images"]) == ("digits", "val", 3)
    assert metrics["weights"] == weights
    assert "step" not in metrics
    stages = {"cam", "affinity", "par", "par+crf"}
    assert {p: set(scores) for p, scores in metrics["miou"].items()} == {"predicted": stages, "given": stages}
    assert page == workdir / "eval" / "report.html"
    files = {
        "metrics.json",
        "report.html",
        "report.json",
        "per_class.md",
        "confusion.png",
        "sweep.json",
        "sweep.png",
        "masks",
    }
    assert {path.name for path in (workdir / "eval").iterdir()} == files
    assert page.read_text().count("<h2>The worst images") == 1


def test_everything_that_made_the_scores_is_recorded(scored):
    metrics = scored[2]
    assert metrics["settings"]["eval"]["stages"] == ["cam", "affinity", "par", "par+crf"]
    assert metrics["settings"]["cam"] == {"flip": False, "scales": [1.0], "dtype": "auto"}
    assert metrics["cam_dtype"] in ("float32", "mixed")
    assert metrics["seeds"] == {"train": 0, "data": 0}
    assert {"python", "jax", "flax", "numpy"} <= metrics["versions"].keys()
    assert metrics["chains"]["par+crf"] == ["cam", "par", "crf"]
    assert metrics["canvases"] == {"32x32": 3}
    assert metrics["programs"] in (4, 5), (
        "network, stages, CRF, and the sweep's for one or two numbers of slots"
    )
    assert metrics["resized"] == []
    assert metrics["devices"].startswith("1 x ")


def test_scores_say_where_their_background_was_chosen(scored):
    _, workdir, metrics, page = scored
    sweep = json.loads((workdir / "eval" / "sweep.json").read_text())
    assert (sweep["split"], sweep["images"], sweep["grid"]) == ("train", 1, [0.1, 0.3])
    for protocol, stages in metrics["background"].items():
        for stage, background in stages.items():
            curve = sweep["miou"][protocol][stage.removesuffix("+crf")]
            assert background["score"] == sweep["grid"][int(np.argmax(curve))]
            assert background["chosen_on"] == "chosen on train (1 images)"
    rows = score_table(metrics).splitlines()[2:-1]
    assert len(rows) == 4
    assert all(row.endswith("chosen on train (1 images)") for row in rows)
    assert page.read_text().count("chosen on train (1 images)</td>") == 4


def test_saved_masks_score_the_same_as_a_folder(scored, tmp_path):
    """The masks lie where VOC's server expects them, and `--masks` finds the network's own score."""
    _, workdir, metrics, _ = scored
    for protocol, stage in (("predicted", "par+crf"), ("given", "cam")):
        folder = workdir / "eval" / "masks" / protocol / stage / "results/VOC2012/Segmentation/comp6_val_cls"
        assert sorted(path.name for path in folder.iterdir()) == [f"val_{i:06d}.png" for i in range(3)]
        again, page = evaluate_masks(tiny_config(), tmp_path / protocol, "val", str(folder))
        assert again["miou"] == {"files": {"masks": metrics["miou"][protocol][stage]}}
        assert again["iou"] == {"files": {"masks": metrics["iou"][protocol][stage]}}
        assert again["masks"] == str(folder)
        assert "classification" not in again
        assert "classification" not in page.read_text().partition("<h2>")[2].partition("<style>")[0]
        with Image.open(folder / "val_000000.png") as picture:
            assert picture.mode == "P"
            # VOC's colour of class 15 is (192, 128, 128).
            assert picture.getpalette()[45:48] == [192, 128, 128]


@pytest.fixture
def masks(tmp_path):
    """A folder of right masks for the three scenes."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    source = make_source(tiny_config().data, "val", with_masks=True)
    for i in range(3):
        Image.fromarray(source[i]["mask"]).save(folder / f"{source[i]['id']}.png")
    return folder


def test_right_masks_score_1(masks, tmp_path):
    metrics, _ = evaluate_masks(tiny_config(), tmp_path / "run", "val", str(masks))
    assert metrics["miou"] == {"files": {"masks": 1.0}}


def test_masks_of_a_folder_whose_tags_name_the_classes(tmp_path):
    photos, masks = tmp_path / "photos", tmp_path / "masks"
    for number, tag in enumerate(("cat", "dog")):
        for folder, pixels in (
            (photos, np.full((16, 16, 3), 100 * number)),
            (masks, np.full((16, 16), number + 1)),
        ):
            (folder / tag).mkdir(parents=True)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / tag / "1.png")
    config = folder_config.get_config()
    config.data.root, config.data.masks, config.data.val_fraction = str(photos), str(masks), 0.99
    metrics, _ = evaluate_masks(config, tmp_path / "run", "val", str(masks))
    assert set(metrics["iou"]["files"]["masks"]) == {"background", "cat", "dog"}
    assert metrics["miou"] == {"files": {"masks": 1.0}}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.unlink(), ["no such file, expected a mask for every image"]),
        (lambda path: Image.new("L", (32, 31)).save(path), ["found a mask of 32x31 pixels, expected 32x32"]),
        (lambda path: Image.new("RGB", (32, 32), (0, 9, 0)).save(path), ["found colours, such as (0, 9, 0)"]),
        (lambda path: Image.new("L", (32, 32), 11).save(path), ["found mask value 11", "9, 10, 255]"]),
        (
            lambda path: Image.new("L", (32, 32), 255).save(path),
            ["found 255 (ignore), expected a class or 0"],
        ),
        (lambda path: path.write_bytes(b"no picture"), ["expected a whole JPEG or PNG image"]),
    ],
    ids=["missing", "size", "colours", "unknown class", "ignore", "broken"],
)
def test_masks_that_cannot_be_scored(masks, tmp_path, spoil, words):
    path = masks / "val_000001.png"
    spoil(path)
    with pytest.raises(UserError) as caught:
        evaluate_masks(tiny_config(), tmp_path / "run", "val", str(masks))
    assert str(caught.value).startswith(f"{path}: ")
    assert all(word in str(caught.value) for word in words), caught.value
    assert not (tmp_path / "run").exists()


def test_mask_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"--masks=.*nothing: no such folder"):
        evaluate_masks(tiny_config(), tmp_path / "run", "val", str(tmp_path / "nothing"))


def test_masks_are_written_in_the_data_sets_numbers(tmp_path):
    mask = np.array([[0, 1, 2]], np.uint8)
    MaskWriter(tmp_path, "test", (8, 12))("predicted", "cam", "a", mask)
    path = tmp_path / "predicted/cam/results/VOC2012/Segmentation/comp6_test_cls/a.png"
    np.testing.assert_array_equal(Image.open(path), [[0, 8, 12]])
    np.testing.assert_array_equal(MaskFolder(path.parent, (8, 12), 2).read("a", (1, 3)), mask)


def test_what_was_scored_is_shown(scored):
    weights, _, metrics, page = scored
    what = (
        f"digits val, 3 images ({metrics['pixels_scored']:,} pixels of {metrics['classes_scored']} classes with "
        f"background), weights {weights}"
    )
    assert score_table(metrics).startswith(f"{what} (scores in %)\n")
    text = page.read_text()
    assert f"<dt>weights</dt><dd>{weights}</dd>" in text
    assert what in text
    assert "started from" not in text, "of that nothing is known"


def test_converted_weights_score_the_same(scored, tmp_path, capsys):
    weights, _, metrics, _ = scored
    converted = tmp_path / "converted.safetensors"
    convert(weights, converted, "rml_jax")
    config = tiny_config()
    config.eval.sweep.split, config.eval.sweep.images = "train", 1
    again, _ = evaluate_run(config, tmp_path / "run", "val", str(converted))
    assert again == metrics | {"weights": str(converted)}
    out = capsys.readouterr().out
    assert f"{converted} (rml_jax layout): " in out
    assert "fresh: fusion/bias, fusion/kernel (not in the file)" in out


class ScoringBeganError(Exception):
    pass


def test_affinity_head_is_needed_for_its_stage_alone(peer, tmp_path, monkeypatch):
    def begin(*arguments):
        raise ScoringBeganError

    monkeypatch.setattr(run, "Evaluator", begin)
    weights = save_without(peer, ("attn_proj.weight", "attn_proj.bias"), tmp_path / "peer.pth")
    with pytest.raises(ScoringBeganError):
        evaluate_run(tiny_config("cam", "par"), tmp_path / "run", "val", weights)
    with pytest.raises(UserError, match="the stages cam, affinity can't be scored without it") as caught:
        evaluate_run(tiny_config("cam", "affinity"), tmp_path / "other", "val", weights)
    message = str(caught.value)
    assert message.startswith(f"{weights}: affinity/")
    assert "is not in the file" in message
    assert "config.eval.stages" in message
    assert "\n" not in message
    assert not (tmp_path / "other").exists()


def other_classes(peer):
    return peer | {"module.classifier.weight": torch.ones(20, MINI.embed_dims[3], 1, 1)}


def no_classifier(peer):
    return {name: tensor for name, tensor in peer.items() if "classifier" not in name}


def another_depth(peer):
    return {name: tensor for name, tensor in peer.items() if "block4.1" not in name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            other_classes,
            ["classifier/kernel is of shape (128, 20) in the file, expected (128, 10)", "class_names"],
        ),
        (no_classifier, ["classifier/kernel is not in the file"]),
        (another_depth, ["expected MiT-mini", "missing: backbone/stages/3/blocks/1/"]),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, words, peer, tmp_path):
    weights = tmp_path / "peer.pth"
    torch.save(change(peer), weights)
    with pytest.raises(UserError) as caught:
        evaluate_run(tiny_config("cam"), tmp_path / "run", "val", str(weights))
    message = str(caught.value)
    assert message.startswith(str(weights))
    assert all(word in message for word in words), message
    assert not (tmp_path / "run").exists()


def test_workdir_that_is_a_file_is_refused_before_scoring(peer, tmp_path):
    weights = save_without(peer, (), tmp_path / "peer.pth")
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match=f"--workdir={tmp_path / 'run'}: .*expected a folder to write to"):
        evaluate_run(tiny_config("cam"), tmp_path / "run", "val", weights)
    assert (tmp_path / "run").read_text() == "mine"


# Without masks


def tagged_config(source, root, masks):
    config = tiny_config("cam")
    config.data.update(folder_config.get_config().data)
    config.data.source, config.data.root, config.data.masks = source, str(root), str(masks)
    config.data.class_names = tuple(f"tag {number}" for number in range(CLASSES))
    config.data.mask_values = tuple(range(1, CLASSES + 1))
    config.data.val_split = "val"
    return config


@pytest.fixture
def tagged(tmp_path):
    """Ten images with a mask and a tag each, in folders of their tags and in VOC's layout."""
    photos, masks, rows = tmp_path / "photos", tmp_path / "masks", ["image,tags"]
    voc = tmp_path / "voc"
    for number in range(CLASSES):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3)).astype(np.uint8)
        paths = photos / f"tag {number}/{number}.png", voc / f"JPEGImages/{number}.png"
        mask_path = masks / f"tag {number}/{number}.png"
        for path in (*paths, mask_path):
            path.parent.mkdir(parents=True, exist_ok=True)
        for path in paths:
            Image.fromarray(pixels).save(path)
        Image.fromarray(np.full((32, 32), 1 + number, np.uint8)).save(mask_path)
        rows.append(f"{number},tag {number}")
    (tmp_path / "val.txt").write_text("".join(f"tag {number}/{number}\n" for number in range(1, CLASSES)))
    (voc / "ImageSets/Segmentation").mkdir(parents=True)
    (voc / "ImageSets/Segmentation/val.txt").write_text("".join(f"{n}\n" for n in range(1, CLASSES)))
    (tmp_path / "tags.csv").write_text("\n".join(rows))
    return tmp_path


def test_without_masks_tags_alone_are_scored(tagged, scored, tmp_path):
    weights, workdir = scored[0], tmp_path / "new"
    config = tagged_config("folder", tagged / "photos", tagged / "masks")
    config.data.val_list = str(tagged / "val.txt")
    config.data.allow_absent = True
    complete, _ = evaluate_run(config, workdir, "val", weights)
    config.data.masks = ""
    found = {"folder": evaluate_run(config, workdir, "val", weights)}
    names = {path.name for path in (workdir / "eval").iterdir()}
    assert names == {"metrics.json", "report.html", "report.json"}
    config = tagged_config("voc", tagged / "voc", "")
    config.data.tags = str(tagged / "tags.csv")
    found["voc"] = evaluate_run(config, workdir, "val", weights)
    for metrics, page in found.values():
        assert metrics["classification"] == pytest.approx(complete["classification"])
        assert metrics["images"] == CLASSES - 1
        assert not {"miou", "iou", "pixels_scored", "classes_scored"} & metrics.keys()
        assert "no masks to score by" in score_table(metrics)
        assert score_table(metrics).splitlines()[-1].startswith("classification F1 ")
        assert "no masks to score by" in page.read_text()
        assert page.read_text().count("classification F1") == 1


def test_without_masks_background_scores_are_chosen_by_contrast(tagged, scored, tmp_path):
    config = tagged_config("voc", tagged / "voc", "")
    config.data.tags = str(tagged / "tags.csv")
    config.eval.sweep.split, config.eval.sweep.criterion = "val", "contrast"
    config.eval.stages, config.eval.region_contrast = ("affinity", "par+crf"), 5.0
    metrics, page = evaluate_run(config, tmp_path / "new", "val", scored[0])
    sweep = json.loads((tmp_path / "new/eval/sweep.json").read_text())
    assert sweep["criterion"] == "contrast"
    assert "miou" not in sweep
    for protocol, stages in sweep["contrast"].items():
        assert list(stages) == ["par"]
        expected = {
            "score": sweep["grid"][np.argmax(stages["par"])],
            "chosen_on": f"chosen on val ({CLASSES - 1} images, by contrast)",
            "region_contrast": 5.0,
        }
        assert metrics["background"][protocol] == {"affinity": expected, "par+crf": expected}
    score = metrics["background"]["predicted"]["par+crf"]["score"]
    assert background_flags(metrics).endswith(
        f"or --stage=par+crf --background={score:g} --region_contrast=5"
    )
    assert "Choice of the background scores on val" in page.read_text()


def test_without_masks_predictions_can_be_saved(tagged, scored, tmp_path):
    config = tagged_config("voc", tagged / "voc", "")
    config.data.tags = str(tagged / "tags.csv")
    evaluate_run(config, tmp_path / "new", "val", scored[0], save_masks=True)
    saved = sorted((tmp_path / "new/eval/masks/given/cam").rglob("*.png"))
    assert [path.stem for path in saved] == [str(number) for number in range(1, CLASSES)]


def test_masks_that_are_named_must_be_there(tagged, scored, tmp_path):
    config = tagged_config("voc", tagged / "voc", "Masks")
    config.data.tags = str(tagged / "tags.csv")
    with pytest.raises(UserError, match=r"config\.data\.masks is 'Masks'"):
        evaluate_run(config, tmp_path / "new", "val", scored[0])


def test_coco_without_outlines_is_scored_by_its_tags(tagged, scored, tmp_path):
    names = [f"tag {number}" for number in range(CLASSES)]
    content = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(1, CLASSES)],
        "annotations": [{"id": n, "image_id": n, "category_id": n + 1} for n in range(1, CLASSES)],
        "categories": [{"id": n + 1, "name": name} for n, name in enumerate(names)],
    }
    root = (tagged / "voc/JPEGImages").rename(tagged / "images").parent
    (root / "annotations").mkdir()
    (root / "annotations/instances_val.json").write_text(json.dumps(content))
    config = tagged_config("coco", root, "")
    config.data.mask_values = ()
    metrics, _ = evaluate_run(config, tmp_path / "new", "val", scored[0])
    assert metrics["images"] == CLASSES - 1
    assert metrics["classification"]["map"] > 0
    assert "miou" not in metrics
