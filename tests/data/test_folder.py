"""One's own photographs: tag files in all spellings, sub-folders, the split, and every mistake in a folder."""

import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from configs import digits, folder
from rml_jax.commands.prepare import prepare
from rml_jax.data.preparation.folder import TaggedFolder
from rml_jax.data.sources import make_source, with_class_names
from rml_jax.data.sources.duplicates import first_copies
from rml_jax.data.sources.folder import (
    PhotoFolder,
    count_left_out,
    describe_left_out,
    find_images,
    folder_classes,
)
from rml_jax.report.evaluation import evaluate_run
from rml_jax.training.loop import train
from rml_jax.utils.errors import UserError


def write_photos(root, names, size=(24, 16)):
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path)
    return root


@pytest.fixture
def photos(tmp_path):
    """A folder of ten photographs 0.jpg ... 9.jpg and a tag file: even ones show a cat, those by three a dog."""
    root = write_photos(tmp_path / "photos", [f"{number}.jpg" for number in range(10)])
    rows = [
        f"{number}.jpg,{'|'.join(['cat'] * (number % 2 == 0) + ['dog'] * (number % 3 == 0))}"
        for number in range(10)
    ]
    (tmp_path / "tags.csv").write_text("\n".join(["image,tags", *rows]) + "\n")
    return root


def open_part(root, is_training=True, **options):
    return PhotoFolder(root, is_training, **{"tags_file": root.parent / "tags.csv", **options})


def ids(source):
    return [source[number]["id"] for number in range(len(source))]


def message_of(function, *arguments, **options):
    with pytest.raises(UserError) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# Tags


def test_items_and_classes_come_from_the_tag_file(photos):
    source = open_part(photos, val_fraction=0.0)
    assert source.class_names == ("cat", "dog")
    assert ids(source) == [str(number) for number in range(10)]
    assert [source[i]["tags"].tolist() for i in (0, 1, 2, 3)] == [[1, 1], [0, 0], [1, 0], [0, 1]]
    assert set(source[0]) == {"id", "image", "tags"}
    assert source[0]["image"].shape == (24, 16, 3)


def test_class_list_of_the_config_decides_the_order(photos):
    assert open_part(photos, class_names=("dog", "bird", "cat"), val_fraction=0.0)[2]["tags"].tolist() == [
        0,
        0,
        1,
    ]
    message = message_of(open_part, photos, class_names=("cat",))
    assert message == f"{photos.parent / 'tags.csv'} line 2: found tag 'dog', expected one of cat"


def test_stray_blanks_and_letter_case_make_no_new_class(tmp_path):
    root = write_photos(tmp_path / "photos", ["a.jpg", "b.jpg"])
    tags = tmp_path / "tags.csv"
    tags.write_text("image,tags\na, Guinea  pig| \nb,guinea pig ;CAT\n")
    assert folder_classes(root, tags) == ("CAT", "Guinea pig")
    source = PhotoFolder(root, True, tags_file=tags, val_fraction=0.0)
    assert [source[i]["tags"].tolist() for i in range(2)] == [[0, 1], [1, 1]]


def test_accents_match_whichever_way_they_are_encoded(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "Käfer/größe é") for form in ("NFC", "NFD"))
    root = write_photos(tmp_path / "photos", [f"{decomposed}.jpg"])
    tags = tmp_path / "tags.csv"
    tags.write_text(f"image,tags\n{composed}.jpg,Käfer\n", encoding="utf-8")
    source = PhotoFolder(root, True, tags_file=tags, val_fraction=0.0)
    assert ids(source) == [composed]


def test_sub_folders_name_the_tags(tmp_path):
    root = write_photos(
        tmp_path / "photos", ["dog/1.jpg", "cat/1.jpg", "cat/deep/2.png", "loose.jpg", "masks/cat/1.png"]
    )
    source = PhotoFolder(root, True, mask_folder=root / "masks", val_fraction=0.0)
    assert source.class_names == ("cat", "dog")
    assert ids(source) == ["cat/1", "cat/deep/2", "dog/1"]
    assert source[2]["tags"].tolist() == [0, 1]
    assert source.untagged == 1
    assert "found folder 'dog', expected one of cat" in message_of(
        PhotoFolder, root, True, ("cat",), mask_folder=root / "masks"
    )


def test_images_without_a_row_are_left_out_and_counted(photos):
    write_photos(photos, ["new.jpg"])
    source = open_part(photos, val_fraction=0.0)
    assert len(source) == 10
    assert source.untagged == 1


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("image,tags\n", "found no images"),
        ("image\na\n", "found the header 'image'"),
        ("image,tags\na,cat\nA.jpg,cat\na.jpg,dog\n", "line 4: found image 'a' a second time"),
        ("image,tags\n0,\n", "found no tags"),
        ("image,tags\n0,cat\n77,cat\n", "no image '77' in "),
    ],
)
def test_broken_tag_files(photos, text, part):
    (photos.parent / "tags.csv").write_text(text)
    message = message_of(open_part, photos)
    assert str(photos.parent / "tags.csv") in message
    assert part in message


# The split


def test_drawn_parts_share_out_the_images(photos):
    parts = [ids(open_part(photos, training, val_fraction=0.3)) for training in (True, False)]
    assert len(parts[1]) == 3
    assert sorted(parts[0] + parts[1]) == [str(number) for number in range(10)]
    assert parts[1] == ids(open_part(photos, False, val_fraction=0.3))
    draws = {tuple(ids(open_part(photos, False, val_fraction=0.3, seed=seed))) for seed in range(5)}
    assert len(draws) > 1


def test_listed_images_are_the_validation_part(photos):
    val_list = photos.parent / "val.txt"
    val_list.write_text("3.jpg\n7\n")
    assert ids(open_part(photos, False, val_list=val_list)) == ["3", "7"]
    assert len(open_part(photos, True, val_list=val_list)) == 8
    val_list.write_text("3\nnone\n")
    assert message_of(open_part, photos, val_list=val_list).startswith(f"{val_list}: found 'none'")


def test_part_without_images(photos):
    assert "no image is left for validation" in message_of(open_part, photos, False, val_fraction=0.0)


# The same image more than once


def copy(path, *names):
    for name in names:
        (path.parents[1] / name).parent.mkdir(exist_ok=True)
        (path.parents[1] / name).write_bytes(path.read_bytes())


def test_one_image_in_two_class_folders_has_both_tags(tmp_path):
    """As annotation tools export an image with two tags."""
    root = write_photos(tmp_path / "photos", [f"cat/{n}.jpg" for n in range(4)] + ["dog/0.jpg", "loose.jpg"])
    copy(root / "cat/1.jpg", "dog/1.jpg")
    copy(root / "cat/2.jpg", "dog/other.jpg")  # Of another name: an item of its own.
    source = PhotoFolder(root, True, val_fraction=0.0)
    tags = {source[number]["id"]: source[number]["tags"].tolist() for number in range(len(source))}
    assert tags == {
        "cat/0": [1, 0],
        "cat/1": [1, 1],
        "cat/2": [1, 0],
        "cat/3": [1, 0],
        "dog/0": [0, 1],
        "dog/other": [0, 1],
    }
    assert source.untagged == 1
    assert source.notes == [
        "copies in other class folders, merged into one image with several tags: 1",
        "images that are identical to another one, and stay in one part with it: 1",
    ]


def test_a_draw_leaves_images_for_training_whatever_is_identical(tmp_path):
    root = write_photos(tmp_path / "photos", [f"cat/{number}.jpg" for number in range(6)])
    for number in range(1, 5):
        copy(root / "cat/0.jpg", f"cat/{number}.jpg")
    for seed in range(5):
        assert ids(PhotoFolder(root, False, seed=seed)) == ["cat/5"]
        assert len(PhotoFolder(root, True, seed=seed)) == 5
    copy(root / "cat/0.jpg", "cat/5.jpg")
    assert len(PhotoFolder(root, True)) == 6
    assert "of 6 with tags, 1 of them different" in message_of(PhotoFolder, root, False)


def test_identical_images_are_in_one_part(tmp_path):
    names = [f"cat/{number}.jpg" for number in range(10)]
    root = write_photos(tmp_path / "photos", names)
    for name in names:
        copy(root / name, name.replace("cat", "dog"), name.replace("/", "/copy of "))
    for seed in range(5):
        parts = [
            {(root / f"{name}.jpg").read_bytes() for name in ids(PhotoFolder(root, training, seed=seed))}
            for training in (True, False)
        ]
        assert parts[1]
        assert parts[0].isdisjoint(parts[1])


def test_copies_of_listed_images_are_left_out_of_training(photos, capsys):
    copy(photos / "3.jpg", "photos/5.jpg")
    val_list = photos.parent / "val.txt"
    val_list.write_text("3\n")
    assert ids(open_part(photos, False, val_list=val_list)) == ["3"]
    assert capsys.readouterr().err == ""
    assert ids(open_part(photos, val_list=val_list)) == list("01246789")
    assert "1 other images are identical to listed ones and left out of training" in capsys.readouterr().err


def test_a_list_may_name_any_copy_of_an_image(tmp_path):
    root = write_photos(tmp_path / "photos", ["cat/0.jpg", "cat/1.jpg"])
    copy(root / "cat/1.jpg", "dog/1.jpg")
    (tmp_path / "val.txt").write_text("dog/1.jpg\n")
    assert ids(PhotoFolder(root, False, val_list=tmp_path / "val.txt")) == ["cat/1"]
    assert ids(PhotoFolder(root, True, val_list=tmp_path / "val.txt")) == ["cat/0"]


def test_files_that_differ_in_the_end_alone_are_different(tmp_path):
    contents = {"a": b"x" * 9000, "b": b"x" * 8999 + b"y", "c": b"x" * 9000, "d": b"x", "e": None}
    files = {name: tmp_path / name for name in contents}
    for name, content in contents.items():
        if content:
            files[name].write_bytes(content)
    assert first_copies(files) == {"a": "a", "b": "b", "c": "a", "d": "d", "e": "e"}


# Masks


def test_masks_number_the_classes_from_one(photos):
    masks = write_photos(photos.parent / "masks", [])
    masks.mkdir()
    for number in range(10):
        Image.fromarray(np.full((24, 16), (0, 1, 2, 255)[number % 4], np.uint8)).save(masks / f"{number}.png")
    source = open_part(photos, val_fraction=0.0, mask_folder=masks, with_masks=True)
    assert [int(source[i]["mask"][0, 0]) for i in range(4)] == [0, 1, 2, 255]
    Image.new("L", (5, 5)).save(masks / "0.png")
    assert f"{masks / '0.png'}: found a mask of 5x5 pixels, expected 16x24" in message_of(lambda: source[0])
    Image.new("RGB", (16, 24), "red").save(masks / "0.png")
    assert f"{masks / '0.png'}: found colours" in message_of(lambda: source[0])
    Image.new("L", (16, 24), 3).save(masks / "0.png")
    assert f"{masks / '0.png'}: found mask value 3" in message_of(lambda: source[0])
    (masks / "4.png").unlink()
    assert f"no mask {masks / '4.png'} for image '4' (missing for 1 of 10" in message_of(
        open_part, photos, val_fraction=0.0, mask_folder=masks, with_masks=True
    )
    assert "config.data.masks is empty" in message_of(open_part, photos, with_masks=True)


# Folders


def test_links_in_a_circle_are_followed_once(photos):
    (photos / "again").symlink_to(photos, target_is_directory=True)
    (photos / "deep").mkdir()
    (photos / "deep" / "up").symlink_to(photos / "deep", target_is_directory=True)
    (photos / "circle.jpg").symlink_to(photos / "circle.jpg")
    assert len(find_images(photos)) == 11
    (photos.parent / "tags.csv").write_text("image,tags\ncircle,cat\n")
    message = message_of(lambda: open_part(photos, val_fraction=0.0)[0])
    assert message.startswith(f"{photos / 'circle.jpg'}: Too many levels of symbolic links")


def test_files_of_other_kinds_are_counted(photos):
    for name in ("notes.txt", "b.TXT", "film.mpg", "x.xyz", "README", ".hidden"):
        (photos / name).write_bytes(b"junk")
    left_out = count_left_out(photos)
    assert left_out == {".txt": 2, ".mpg": 1, ".xyz": 1, "": 1}
    assert describe_left_out(left_out) == (
        "5 files without an image's suffix (no suffix 1, .mpg 1, .txt 2, .xyz 1)"
    )
    assert describe_left_out({}) == ""
    assert open_part(photos, val_fraction=0.0).left_out == left_out


def test_photographs_of_every_suffix_are_listed(photos):
    for name in ("a.avif", "b.jfif", "c.jp2", "d.AVIF"):
        (photos / name).write_bytes(b"")
    assert {"a", "b", "c", "d"} < set(find_images(photos))


def test_folder_that_cannot_be_read(photos, monkeypatch):
    (photos / "locked").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):  # Permissions don't hold back root, who may run the tests.
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert message_of(find_images, photos).startswith(f"{photos / 'locked'}: Permission denied")


def test_folders_without_photographs(tmp_path):
    assert "No such file" in message_of(find_images, tmp_path / "none")
    assert "config.data.root is empty" in message_of(find_images, "")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "._hidden.jpg").touch()
    assert f"{tmp_path}: found no images" in message_of(find_images, tmp_path)


def test_names_that_differ_in_the_suffix_alone(tmp_path):
    write_photos(tmp_path, ["a.jpg", "a.png"])
    assert "found both a.jpg and a.png" in message_of(find_images, tmp_path)


# Bad files in training


def test_training_stops_at_a_bad_file_or_skips_it(photos, capsys):
    (photos / "4.jpg").write_bytes(b"")
    config = folder.get_config()
    config.data.root, config.data.tags, config.data.val_fraction = (
        str(photos),
        str(photos.parent / "tags.csv"),
        0.0,
    )
    config = with_class_names(config)
    stops = make_source(config.data, "train", with_masks=False)
    assert message_of(lambda: stops[4]).startswith(f"{photos / '4.jpg'}: found an empty file")
    config.data.skip_bad = True
    skips = make_source(config.data, "train", with_masks=False)
    assert [skips[number]["id"] for number in (3, 4, 5, 4)] == ["3", "5", "5", "5"]
    assert capsys.readouterr().err.count("skipped, 1 so far: ") == 1
    for path in photos.iterdir():
        path.write_bytes(b"junk")
    assert "found no image" in message_of(lambda: skips[0])


# The whole way


@pytest.mark.slow
def test_from_photographs_to_scores(tmp_path):
    """Ten classes at the sizes of tests/training/test_loop.py: the same programs, compiled once for both."""
    root = write_photos(
        tmp_path / "photos", [f"tag {number}/{i}.jpg" for number in range(10) for i in range(2)], (40, 48)
    )
    masks = tmp_path / "masks"
    for name in find_images(root):
        (masks / name).parent.mkdir(parents=True, exist_ok=True)
        mask = np.zeros((40, 48), np.uint8)
        mask[10:20] = 1 + int(name.split("/")[0].removeprefix("tag "))
        Image.fromarray(mask).save(masks / f"{name}.png")
    config = digits.get_config()
    config.data.update(folder.get_config().data)
    config.data.root, config.data.masks = str(root), str(masks)
    config.model.drop_path_rate = 0.1
    config.loss.start_step = 4  # Mutual learning is another program, and none of the data's business.
    config.pseudo_label.dilations = (1, 2)
    config.train.steps, config.train.batch_size, config.train.crop_size = 4, 2, 32
    config.checkpoint.every, config.log.every, config.log.pictures_every = 2, 1, 0
    config.eval.canvases, config.eval.batch_size, config.eval.pictures = ((32, 32),), 2, 2
    state = train(config, tmp_path / "run")
    assert int(state.step) == 4
    assert config.data.class_names == (), "the caller's config is left alone"
    metrics, page = evaluate_run(with_class_names(config), tmp_path / "run", "val")
    assert metrics["images"] == 2
    assert set(metrics["iou"]["given"]["par"]) == {"background", *(f"tag {number}" for number in range(10))}
    assert page.exists()

    options = {
        "class_names": (),
        "tags_file": "",
        "mask_folder": str(masks),
        "mask_values": (),
        "val_list": "",
    }
    builder = TaggedFolder(
        root=root, folder_options=options | {"val_fraction": 0.1, "seed": 0}, data_dir=tmp_path / "out"
    )
    config.data.root, config.data.masks = str(prepare(builder)[0]), ""
    prepared, _ = evaluate_run(with_class_names(config), tmp_path / "run", "val")
    assert prepared["iou"] == metrics["iou"]
