"""The command `rml-jax predict`: files in, files out."""

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import rml_jax
from rml_jax import visualize
from rml_jax.commands.predict import main, named_files
from rml_jax.inference.export import weights
from rml_jax.inference.export.checksums import write_sums
from rml_jax.inference.predictor import as_image
from rml_jax.utils.errors import UserError


@pytest.fixture(scope="module")
def photos(tmp_path_factory, noise):
    """Good files, among them two of one name, and bad ones."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "trip").mkdir()
    Image.fromarray(noise(32, 40, 1)).save(folder / "a.png")
    Image.fromarray(noise(30, 30, 2)).save(folder / "a.webp", lossless=True)
    Image.fromarray(noise(40, 70, 3)).save(folder / "trip" / "b.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing more")
    return folder


@pytest.fixture(scope="module")
def predicted(photos, model_folder, tmp_path_factory):
    """The folder that was written."""
    out = tmp_path_factory.mktemp("out") / "new"
    options = ["--stage=cam", "--background=0.3", "--tags=ant,cow", "--save_cams", "--save_rle"]
    arguments = [f"--workdir={model_folder}", f"--out={out}", *options, str(photos)]
    with pytest.raises(SystemExit) as left:
        main([*arguments, str(photos / "gone.jpg")])
    assert left.value.code == 1, "two bad files"
    return out


def test_what_is_written(predicted):
    files = {path.relative_to(predicted).as_posix() for path in predicted.rglob("*") if path.is_file()}
    names = ("a", "a-2", "trip/b")
    assert files == {
        "predictions.json",
        "coco.json",
        *(f"masks/{name}.png" for name in names),
        *(f"overlays/{name}.jpg" for name in names),
        *(f"cams/{name}/{cam}.jpg" for name in names for cam in ("8_ant", "15_cow")),
    }


def test_record(predicted, photos):
    record = json.loads((predicted / "predictions.json").read_text())
    assert (record["stage"], record["background"], record["scales"]) == ("cam", 0.3, [1.0])
    assert record["numbers"] == {"background": 0, "ant": 8, "bee": 12, "cow": 15}
    assert {picture["name"]: picture["file"] for picture in record["pictures"]} == {
        "a": str(photos / "a.png"),
        "a-2": str(photos / "a.webp"),
        "trip/b": str(photos / "trip/b.png"),
    }
    assert [Path(failed["file"]).name for failed in record["failed"]] == ["broken.jpg", "gone.jpg"]
    assert "gone.jpg: No such file" in record["failed"][1]["reason"]
    numbers = record["numbers"]
    for picture in record["pictures"]:
        assert list(picture["tags"]) == ["ant", "cow"]
        mask = np.asarray(Image.open(predicted / "masks" / f"{picture['name']}.png"))
        assert mask.shape == (picture["height"], picture["width"])
        counted = {name: int((mask == number).sum()) for name, number in numbers.items()}
        assert {name: area["pixels"] for name, area in picture["areas"].items()} == {
            name: count for name, count in counted.items() if count or name == "background"
        }
        assert sum(area["share"] for area in picture["areas"].values()) == pytest.approx(1)
    tiles = {picture["name"]: picture["tiles"] for picture in record["pictures"]}
    assert (tiles["a"], tiles["trip/b"]) == (1, 4)


def test_masks_have_the_palette_and_codes_give_the_masks(predicted):
    codes = json.loads((predicted / "coco.json").read_text())
    assert codes
    for code in codes:
        with Image.open(predicted / "masks" / f"{code['image_id']}.png") as picture:
            assert picture.mode == "P"
            assert picture.getpalette() == visualize.palette().ravel().tolist()
            mask = np.asarray(picture)
        decoded = coco_mask.decode(code["segmentation"])
        np.testing.assert_array_equal(decoded == 1, mask == code["category_id"])


def test_overlay_has_a_legend_below(predicted, noise):
    with Image.open(predicted / "overlays" / "a.jpg") as picture:
        pixels = np.asarray(picture).astype(int)
    assert pixels.shape[1] == 240, "a legend needs room"
    assert pixels.shape[0] > 32
    mask = np.asarray(Image.open(predicted / "masks" / "a.png"))
    background = pixels[:32, :40][mask == 0].ravel()
    assert np.corrcoef(background, noise(32, 40, 1)[mask == 0].ravel())[0, 1] > 0.4, "but for JPEG's losses"


def test_nothing_is_overwritten(predicted, photos, model_folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in predicted.rglob("*")}
    with pytest.raises(SystemExit) as left:
        main([f"--workdir={model_folder}", f"--out={predicted}", str(photos)])
    assert left.value.code == 2
    assert "found files in it, expected a new or empty folder" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in predicted.rglob("*")} == before


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--tags=ant,dog", "unknown tag 'dog'"),
        ('--tags="ant,cow",bee', "unknown tag 'ant,cow'"),
        ("--tags=[ant", "--tags: found '[ant', which is no list of tags"),
        ("--tags=nothing.csv", "nothing.csv"),
        ("--stage=best", "eval.stages"),
    ],
)
def test_mistakes_come_before_the_first_picture(option, words, photos, model_folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main([f"--workdir={model_folder}", f"--out={tmp_path / 'out'}", option, str(photos)])
    assert left.value.code == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tags_of_each_picture_from_a_file(photos, model_folder, tmp_path):
    (tmp_path / "tags.csv").write_text("image,tags\na,ant\ntrip/b,bee|cow\n")
    out = tmp_path / "out"
    options = [f"--tags={tmp_path / 'tags.csv'}", "--stage=cam"]
    with pytest.raises(SystemExit) as left:
        main([f"--workdir={model_folder}", f"--out={out}", *options, str(photos)])
    assert left.value.code == 1
    record = json.loads((out / "predictions.json").read_text())
    tags = {picture["name"]: list(picture["tags"]) for picture in record["pictures"]}
    assert tags == {"a": ["ant"], "a-2": ["ant"], "trip/b": ["bee", "cow"]}
    assert [Path(failed["file"]).name for failed in record["failed"]] == ["broken.jpg"]


def test_pictures_without_tags_are_counted(photos, model_folder, tmp_path, capsys):
    options = [f"--workdir={model_folder}", f"--out={tmp_path / 'out'}", "--stage=cam", "--tag_threshold=1"]
    main([*options, str(photos / "a.png"), str(photos / "trip" / "b.png")])
    assert "2 masks are background only, as no class scored above 1.0" in capsys.readouterr().out


def test_pictures_said_to_show_nothing_call_for_no_hint(photos, model_folder, tmp_path, capsys):
    (tmp_path / "tags.csv").write_text("image,tags\na,\n")
    options = [f"--workdir={model_folder}", f"--out={tmp_path / 'out'}", "--stage=cam"]
    main([*options, f"--tags={tmp_path / 'tags.csv'}", str(photos / "a.png")])
    assert "background only" not in capsys.readouterr().out


def predict(model_folder, out, *arguments):
    options = ["--stage=cam", "--background=0.3", "--tags=ant,cow"]
    main([f"--workdir={model_folder}", f"--out={out}", *options, *map(str, arguments)])
    return out


def good(photos):
    return [photos / "a.png", photos / "trip"]


def write_truth(path, photos, names=("a.png", "trip/b.png"), first_id=501):
    """An annotation file of the photographs, with ids of its own for images and classes."""
    images = []
    for number, name in enumerate(names, first_id):
        with Image.open(photos / name) as image:
            images.append({"id": number, "file_name": name, "width": image.width, "height": image.height})
    annotation = {
        "id": 1,
        "image_id": first_id,
        "category_id": 0,
        "bbox": [1, 1, 9, 9],
        "area": 81,
        "iscrowd": 0,
    }
    annotation["segmentation"] = [[1, 1, 10, 1, 10, 10, 1, 10]]
    categories = [{"id": number, "name": name} for number, name in ((0, "ant"), (1, "Bee"), (17, "cow"))]
    content = {"images": images, "annotations": [annotation], "categories": categories}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def assert_masks(data, annotations, out, names, numbers):
    """Masks in COCO's format are those in `masks`."""
    found = set()
    for entry in annotations:
        name = names[entry["image_id"]]
        stored = np.asarray(Image.open(out / "masks" / f"{name}.png"))
        np.testing.assert_array_equal(data.annToMask(entry) == 1, stored == numbers[entry["category_id"]])
        found.add((name, numbers[entry["category_id"]]))
    stored = {name: np.unique(Image.open(out / "masks" / f"{name}.png")).tolist() for name in names.values()}
    assert found == {(name, number) for name, values in stored.items() for number in values if number}


def test_a_whole_coco_file(photos, model_folder, tmp_path):
    out = predict(model_folder, tmp_path / "out", "--format=coco", *good(photos))
    data = COCO(out / "annotations" / "instances_default.json")
    assert {i["id"]: i["file_name"] for i in data.imgs.values()} == {1: "a.png", 2: "b.png"}
    assert {c["id"]: c["name"] for c in data.cats.values()} == {8: "ant", 12: "bee", 15: "cow"}
    assert_masks(data, data.anns.values(), out, {1: "a", 2: "b"}, {8: 8, 12: 12, 15: 15})


def test_masks_for_cvat(photos, model_folder, tmp_path):
    out = predict(model_folder, tmp_path / "out", "--format=voc", *good(photos))
    assert (out / "labelmap.txt").read_text().splitlines()[1:] == [
        "background:0,0,0::",
        "ant:64,0,0::",
        "bee:64,0,128::",
        "cow:192,128,128::",
    ]
    assert (out / "ImageSets" / "Segmentation" / "default.txt").read_text() == "a\nb\n"
    for name in ("a", "b"):
        assert (out / "SegmentationClass" / f"{name}.png").read_bytes() == (
            out / "masks" / f"{name}.png"
        ).read_bytes()


def test_results_for_an_annotation_file(photos, model_folder, tmp_path, capsys):
    """Image ids were names, which pycocotools refuses."""
    truth = write_truth(tmp_path / "truth.json", photos)
    out = predict(
        model_folder,
        tmp_path / "out",
        "--save_rle",
        f"--annotations={truth}",
        photos / "a.png",
        photos / "trip" / "b.png",
    )
    data = COCO(truth)
    results = data.loadRes(str(out / "coco.json"))
    assert_masks(data, results.anns.values(), out, {501: "a", 502: "b"}, {0: 8, 1: 12, 17: 15})
    with pytest.raises(SystemExit):
        predict(model_folder, tmp_path / "other", "--save_rle", f"--annotations={truth}", photos / "a.webp")
    assert "found no image a.webp" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        predict(model_folder, tmp_path / "other", f"--annotations={truth}", photos / "a.png")
    assert "expected one that has ids" in capsys.readouterr().err


def test_ids_of_a_coco_run(photos, network, tmp_path):
    """They were 1..80 where COCO's own have gaps: cats came out as birds."""
    config, params = network
    config = config.copy_and_resolve_references()
    config.data.source, config.data.root, config.data.mask_values = "coco", str(tmp_path / "data"), ()
    config.data.category_ids = (0, 1, 17)
    model = tmp_path / "model"
    model.mkdir()
    weights.write_model(model, config, params, step=1)
    write_sums(model, weights.FILES)
    truth = write_truth(tmp_path / "data" / "annotations" / "instances_val.json", photos)
    out = predict(model, tmp_path / "out", "--save_rle", *good(photos))
    data = COCO(truth)
    results = data.loadRes(str(out / "coco.json"))
    assert_masks(data, results.anns.values(), out, {501: "a", 502: "b"}, {0: 1, 1: 2, 17: 3})


def test_own_masks_are_not_predicted_the_second_time(photos, model_folder, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").write_bytes((photos / "a.png").read_bytes())
    for number in (1, 2, 3):
        out = predict(model_folder, folder / f"out{number}", folder)
        assert [p["name"] for p in json.loads((out / "predictions.json").read_text())["pictures"]] == ["a"]


def test_names_never_collide(tmp_path):
    for name in ("a.jpg", "a.png", "A.JPEG", "a-2.png", "x/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = named_files([str(tmp_path), str(tmp_path / "x" / "a.jpg")])
    assert len({name.casefold() for name in names}) == len(names) == 6
    assert sorted(path for path, _ in names.values()) == sorted(
        [tmp_path / "x/a.jpg", *(path for path in tmp_path.rglob("*.*"))]
    )


def test_folder_without_pictures(tmp_path):
    with pytest.raises(UserError, match="found no images"):
        named_files([tmp_path])


def test_example_goes_from_photographs_to_masks(model_folder, noise, tmp_path, monkeypatch, capsys):
    page = (Path(rml_jax.__file__).parents[1] / "docs" / "inference.md").read_text(encoding="utf-8")
    (script,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if ".glob(" in code]
    assert script.count("\n") < 30
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.fromarray(noise(32, 40)).save(tmp_path / "photos" / "one.jpg")
    assert '"runs/mine"' in script
    exec(compile(script.replace('"runs/mine"', repr(str(model_folder))), "inference.md", "exec"), {})
    assert capsys.readouterr().out.startswith("one.jpg {")
    with Image.open(tmp_path / "masks" / "one.png") as mask:
        assert (mask.size, mask.mode) == ((40, 32), "L")
    assert (tmp_path / "masks" / "one_overlay.png").is_file()


def test_auto_chooses_the_background_score(photos, model_folder, tmp_path, capsys):
    """On the readable images; it is the score of `Predictor.choose_background`."""
    out = tmp_path / "out"
    options = ["--stage=cam", "--background=auto", "--region_contrast=2", "--tags=ant,cow", "--page"]
    with pytest.raises(SystemExit):  # One file is broken.
        main([f"--workdir={model_folder}", f"--out={out}", *options, str(photos)])
    predictor = rml_jax.load(model_folder, stage="cam")
    readable = [as_image(photos / name) for name in ("a.png", "a.webp", "trip/b.png")]
    score = predictor.choose_background((image, ("ant", "cow")) for image in readable)
    assert f"background score {score:g}, chosen by the contrast of 3 images' masks" in capsys.readouterr().out
    record = json.loads((out / "predictions.json").read_text())
    assert (record["background"], record["region_contrast"]) == (score, 2)
    # The page's sliders are one score for all images.
    assert "--background=SCORE --region_contrast=0" in (out / "page.html").read_text()


def test_page_shows_the_cams_of_every_image(photos, model_folder, tmp_path):
    out = tmp_path / "out"
    options = ["--page", "--tags=ant,cow", "--stage=cam", "--background=0.3"]
    main([f"--workdir={model_folder}", f"--out={out}", *options, str(photos / "a.png")])
    text = (out / "page.html").read_text()
    data = re.search(r'id="explorer-data">(.*?)</script>', text, re.DOTALL)[1]
    (scene,) = json.loads(data)["scenes"]
    assert (scene["name"], scene["size"], scene["labels"]) == ("a", [32, 40], [1, 3])
    assert 'id="explorer-score" min="0" max="1" step="0.01" value="0.3"' in text
    # Enlarged again, the stored CAMs give nearly the mask that was written.
    stored = np.frombuffer(base64.b64decode(scene["cams"]), np.uint8).reshape(2, *scene["grid"])
    cams = np.stack(
        [np.asarray(Image.fromarray(cam).resize((40, 32), Image.Resampling.BILINEAR)) for cam in stored]
    )
    mask = np.where(cams.max(axis=0) > 0.3 * 255, np.array([8, 15])[cams.argmax(axis=0)], 0)
    written = np.asarray(Image.open(out / "masks" / "a.png"))
    assert (mask == written).mean() > 0.95
