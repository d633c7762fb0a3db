"""The VOC folder source: what items hold, where tags come from, and every message for a broken folder."""

import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from rml_jax.data.masks import presence, read_mask
from rml_jax.data.sources.voc import VocFolder
from rml_jax.data.tags import read_list, read_tags
from rml_jax.utils.errors import UserError

CLASS_NAMES = ("cat", "dog")


def open_folder(files, split="train", **options):
    return VocFolder(files.root, split, files.class_names, files.mask_values, **options)


def write_tags(files, text, encoding="utf-8"):
    path = files.root / "tags.csv"
    path.write_bytes(text.encode(encoding))
    return path


def assert_message(error, *parts):
    """The message is one line that names every part."""
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


# Items


def test_training_items_hold_image_and_tags_but_no_mask(make_voc_folder):
    source = open_folder(make_voc_folder())
    assert len(source) == 5
    assert source.class_names == CLASS_NAMES
    items = [source[i] for i in range(5)]
    assert {frozenset(item) for item in items} == {frozenset({"id", "image", "tags"})}
    assert [item["id"] for item in items] == [f"train_{i:03d}" for i in range(5)]
    for item in items:
        assert item["image"].dtype == np.uint8
        assert item["image"].shape[2] == 3
        assert item["tags"].dtype == np.float32
    assert [item["tags"].tolist() for item in items] == [[1, 0], [0, 1], [1, 1], [1, 0], [0, 1]]


def test_masks_are_renumbered_in_the_order_of_the_classes(make_voc_folder):
    files = make_voc_folder()
    item = open_folder(files, "val", with_masks=True)[2]
    stored = files.read_stored_mask("val_002")
    assert item["mask"].dtype == np.uint8
    assert item["mask"].shape == item["image"].shape[:2]
    np.testing.assert_array_equal(item["mask"] == 1, stored == 8)
    np.testing.assert_array_equal(item["mask"] == 2, stored == 12)
    np.testing.assert_array_equal(item["mask"] == 255, stored == 255)
    np.testing.assert_array_equal(item["mask"] == 0, stored == 0)


def test_grey_masks_read_like_palette_masks(make_voc_folder):
    files = make_voc_folder()
    stored = files.read_stored_mask("val_000")
    expected = read_mask(files.mask_path("val_000"), files.mask_values)
    Image.fromarray(stored).save(files.mask_path("val_000"))
    np.testing.assert_array_equal(read_mask(files.mask_path("val_000"), files.mask_values), expected)


def test_presence_counts_neither_background_nor_ignore():
    np.testing.assert_array_equal(presence(np.uint8([[0, 255], [2, 2]]), 3), np.float32([0, 1, 0]))


def test_grey_and_cmyk_images_become_rgb(make_voc_folder):
    files = make_voc_folder()
    source = open_folder(files)
    for mode in ("L", "CMYK"):
        with Image.open(files.image_path("train_000")) as picture:
            picture.convert(mode).save(files.image_path("train_000"))
        assert source[0]["image"].shape[2] == 3


def test_pickled_source_gives_the_same_items(make_voc_folder):
    source = open_folder(make_voc_folder(), with_masks=True)
    copy = pickle.loads(pickle.dumps(source))
    assert all(np.array_equal(source[1][key], copy[1][key]) for key in source[1])


# Split files


@pytest.mark.parametrize("text", ["a\nb\n", "a\nb", "a\r\nb\r\n", "\n a  \n\nb\t\n\n", "\ufeffa\nb\n"])
def test_split_files_in_all_their_spellings(tmp_path, text):
    path = tmp_path / "split.txt"
    path.write_bytes(text.encode())
    assert read_list(path) == ("a", "b")


@pytest.mark.parametrize(
    ("content", "part"), [(b"\n \r\n", "no ids"), (b"a\nb\na\n", "'a' 2 times"), (b"\xff\xfe\x00", "UTF-8")]
)
def test_broken_split_files(tmp_path, content, part):
    path = tmp_path / "split.txt"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_list(path)
    assert_message(error, path, part)


# Tag files


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("image,tags\na,cat|dog\nb,dog\nc,\n", "utf-8"),
        ("image,tags\r\na.jpg, cat ; dog \r\n\r\nb.PNG,dog;\r\nc.jpeg,", "utf-8-sig"),
        ('image, tags\n"a","dog|cat"\n b ,"dog"\nc,""', "utf-8"),
    ],
)
def test_tag_files_in_all_their_spellings(tmp_path, text, encoding):
    path = tmp_path / "tags.csv"
    path.write_bytes(text.encode(encoding))
    assert read_tags(path, CLASS_NAMES) == {"a": (0, 1), "b": (1,), "c": ()}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("image,tags\na,cat\nb,Bird\n", ["line 3", "'Bird'", "cat, dog"]),
        ("image,tags\na,cat,dog\n", ["line 2", "3 columns"]),
        ("image,tags\na,cat\na.jpg,dog\n", ["line 3", "'a' a second time"]),
    ],
)
def test_broken_tag_files(tmp_path, text, parts):
    path = tmp_path / "tags.csv"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_tags(path, CLASS_NAMES)
    assert_message(error, path, *parts)


def test_ids_with_dots_keep_them(tmp_path):
    path = tmp_path / "tags.csv"
    path.write_text("image,tags\nv1.2,cat\nv1.3.jpg,dog\n")
    assert read_tags(path, CLASS_NAMES) == {"v1.2": (0,), "v1.3": (1,)}


def test_tag_file_overrules_the_masks_of_the_images_it_lists(make_voc_folder):
    files = make_voc_folder()
    tags_file = write_tags(files, "image,tags\ntrain_000,dog\n")
    source = open_folder(files, tags_file=tags_file)
    assert source[0]["tags"].tolist() == [0, 1]
    assert source[1]["tags"].tolist() == [0, 1]
    assert source[2]["tags"].tolist() == [1, 1]


def test_training_on_tags_needs_no_masks_at_all(make_voc_folder):
    files = make_voc_folder(train=2)
    tags_file = write_tags(files, "image,tags\ntrain_000,cat\ntrain_001,\n")
    shutil.rmtree(files.root / "SegmentationClassAug")
    source = open_folder(files, tags_file=tags_file)
    assert [source[i]["tags"].tolist() for i in range(2)] == [[1, 0], [0, 0]]


def test_evaluation_takes_masks_and_the_tag_files_tags(make_voc_folder):
    files = make_voc_folder()
    tags_file = write_tags(files, "image,tags\nval_000,dog\n")
    item = open_folder(files, "val", tags_file=tags_file, with_masks=True)[0]
    assert item["tags"].tolist() == [0, 1]
    assert set(np.unique(item["mask"])) == {0, 1, 255}


def in_folders(files, *names):
    """Moves train_000, train_001, ... to other ids, among them some in folders."""
    for number, name in enumerate(names):
        for path_of in (files.image_path, files.mask_path):
            path_of(name).parent.mkdir(exist_ok=True)
            path_of(f"train_{number:03d}").rename(path_of(name))
    return files


@pytest.mark.parametrize(
    ("rows", "tags"),
    [
        # Without a row, "a/1" has cat and "b/1" has dog by their masks, "c" has both.
        ("a/1,dog", [[0, 1], [0, 1], [1, 1]]),
        ("b/1.jpg,cat|dog\nc,", [[1, 0], [1, 1], [0, 0]]),
        ("JPEGImages/a/1.jpg,\n/data/VOC2012/JPEGImages/b/1.jpg,cat", [[0, 0], [1, 0], [1, 1]]),
        ("a/1,dog\nd/c,\nc,dog", [[0, 1], [0, 1], [0, 1]]),
    ],
)
def test_a_tag_file_names_images_in_folders(make_voc_folder, rows, tags):
    files = in_folders(make_voc_folder(train=3), "a/1", "b/1", "c")
    files.write_split("train", "a/1\nb/1\nc\n")
    source = open_folder(files, tags_file=write_tags(files, f"image,tags\n{rows}\n"))
    assert [source[number]["tags"].tolist() for number in range(3)] == tags


def test_a_row_for_an_image_of_another_split_is_not_taken_for_this_ones(make_voc_folder):
    files = in_folders(make_voc_folder(train=2), "a/c", "c")
    files.write_split("train", "c\n")
    files.write_split("val", "a/c\n")
    tags_file = write_tags(files, "image,tags\na/c,cat\n")
    assert open_folder(files, "val", tags_file=tags_file)[0]["tags"].tolist() == [1, 0]
    with pytest.raises(UserError, match="found tags for none of the images"):
        open_folder(files, tags_file=tags_file)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("1,cat", "found '1' for 'a/1' and 'b/1', expected one row with the whole id"),
        ("x/c,cat\ny/c,dog", "found 'y/c' and 'x/c' for 'c', expected one row with the whole id"),
    ],
)
def test_ambiguous_names_in_a_tag_file(make_voc_folder, rows, words):
    files = in_folders(make_voc_folder(train=3), "a/1", "b/1", "c")
    files.write_split("train", "a/1\nb/1\nc\n")
    tags_file = write_tags(files, f"image,tags\n{rows}\n")
    with pytest.raises(UserError) as error:
        open_folder(files, tags_file=tags_file)
    assert_message(error, tags_file, words)


# What tools write


def test_images_of_other_suffixes(make_voc_folder):
    files = make_voc_folder()
    expected = [open_folder(files)[number]["tags"].tolist() for number in range(5)]
    for number, suffix in enumerate((".png", ".jpeg", ".JPG", ".bmp")):
        with Image.open(files.image_path(f"train_{number:03d}")) as image:
            image.save(files.root / "JPEGImages" / f"train_{number:03d}{suffix}")
        files.image_path(f"train_{number:03d}").unlink()
    source = open_folder(files)
    assert [source[number]["id"] for number in range(5)] == [f"train_{number:03d}" for number in range(5)]
    assert [source[number]["tags"].tolist() for number in range(5)] == expected
    assert all(source[number]["image"].shape[2] == 3 for number in range(5))


@pytest.mark.parametrize(
    "form",
    [
        "{}.jpg",
        "JPEGImages/{}.jpg",
        "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png",
        "VOC2012/JPEGImages/{0}.jpg\tSegmentationClassAug/{0}.png",
    ],
)
def test_lists_with_suffixes_or_pairs_of_image_and_mask(make_voc_folder, form):
    files = make_voc_folder()
    plain = open_folder(files, with_masks=True)
    ids = [f"train_{number:03d}" for number in range(5)]
    files.write_split("train", "\n".join(map(form.format, ids)))
    source = open_folder(files, with_masks=True)
    for number, name in enumerate(ids):
        assert source[number]["id"] == name
        np.testing.assert_array_equal(source[number]["image"], plain[number]["image"])
        np.testing.assert_array_equal(source[number]["mask"], plain[number]["mask"])


def test_the_mask_of_a_pair_may_have_another_name(make_voc_folder):
    files = make_voc_folder(train=2)
    (files.root / "labels").mkdir()
    files.mask_path("train_001").rename(files.root / "labels/b.png")
    files.write_split("train", "JPEGImages/train_001.jpg labels/b.png\n")
    assert open_folder(files)[0]["tags"].tolist() == [0, 1]
    files.write_split("train", "JPEGImages/train_001.jpg labels/c.png\n")
    with pytest.raises(UserError) as error:
        open_folder(files)
    assert_message(error, files.root / "labels/c.png", "'train_001'")


@pytest.mark.parametrize("text", ["train_000\ntrain_000.jpg\n", "train_000.jpg\nJPEGImages/train_000.jpg\n"])
def test_an_image_twice_in_a_list(make_voc_folder, text):
    files = make_voc_folder()
    files.write_split("train", text)
    with pytest.raises(UserError) as error:
        open_folder(files)
    assert_message(error, files.split_path("train"), "train_000.jpg", "each image once")


def test_two_images_for_one_id(make_voc_folder):
    files = make_voc_folder()
    folder = files.root / "JPEGImages"
    files.image_path("train_000").rename(folder / "train_000.png")
    shutil.copy(folder / "train_000.png", folder / "train_000.bmp")
    files.write_split("train", "train_000\n")
    with pytest.raises(UserError) as error:
        open_folder(files)
    assert_message(error, "train_000.bmp and train_000.png")
    files.write_split("train", "train_000.png\n")
    assert len(open_folder(files)) == 1


@pytest.mark.parametrize("by", ["default", "name", "path"])
def test_other_folders_of_masks(make_voc_folder, tmp_path, by):
    files = make_voc_folder()
    expected = open_folder(files, with_masks=True)[2]
    moved = {"default": "SegmentationClass", "name": "SegmentationClassPNG", "path": "../labels"}[by]
    (files.root / "SegmentationClassAug").rename(files.root / moved)
    option = {"default": "", "name": moved, "path": str(tmp_path / "labels")}[by]
    item = open_folder(files, with_masks=True, mask_folder=option)[2]
    np.testing.assert_array_equal(item["mask"], expected["mask"])


def test_missing_folder_of_masks(make_voc_folder):
    files = make_voc_folder()
    with pytest.raises(UserError) as error:
        open_folder(files, mask_folder="Masks")
    assert_message(error, "config.data.masks is 'Masks'", files.root)


# Errors of the constructor


@pytest.mark.parametrize("folder", ["", "JPEGImages", "ImageSets/Segmentation"])
def test_missing_folder(make_voc_folder, folder):
    files = make_voc_folder()
    shutil.rmtree(files.root / folder)
    with pytest.raises(UserError) as error:
        open_folder(files)
    assert_message(error, files.root / folder, "no folder")


def test_missing_split(make_voc_folder):
    files = make_voc_folder()
    with pytest.raises(UserError) as error:
        open_folder(files, "trainaug")
    assert_message(error, files.split_path("trainaug"), "No such file")


def test_missing_tag_file(make_voc_folder, tmp_path):
    with pytest.raises(UserError) as error:
        open_folder(make_voc_folder(), tags_file=tmp_path / "none.csv")
    assert_message(error, tmp_path / "none.csv", "No such file")


def test_missing_images(make_voc_folder):
    files = make_voc_folder()
    files.image_path("train_001").unlink()
    files.image_path("train_003").unlink()
    with pytest.raises(UserError) as error:
        open_folder(files)
    assert_message(error, files.image_path("train_001"), "'train_001'", "2 of 5 ids")


@pytest.mark.parametrize("with_masks", [False, True])
def test_missing_masks(make_voc_folder, with_masks):
    files = make_voc_folder()
    files.mask_path("train_001").unlink()
    with pytest.raises(UserError) as error:
        open_folder(files, with_masks=with_masks)
    assert_message(error, files.mask_path("train_001"), "'train_001'", "1 of 5 ids")


def test_image_with_neither_tags_nor_mask(make_voc_folder):
    files = make_voc_folder()
    files.mask_path("train_000").unlink()
    files.mask_path("train_001").unlink()
    tags_file = write_tags(files, "image,tags\ntrain_000,cat\n")
    with pytest.raises(UserError) as error:
        open_folder(files, tags_file=tags_file)
    assert_message(error, files.mask_path("train_001"), tags_file, "neither tags", "1 of 5 ids")


def test_evaluation_needs_a_mask_even_where_there_are_tags(make_voc_folder):
    files = make_voc_folder()
    files.mask_path("val_000").unlink()
    tags_file = write_tags(files, "image,tags\nval_000,cat\n")
    with pytest.raises(UserError) as error:
        open_folder(files, "val", tags_file=tags_file, with_masks=True)
    assert_message(error, files.mask_path("val_000"), "no mask")


def test_tag_file_of_another_data_set(make_voc_folder):
    files = make_voc_folder()
    tags_file = write_tags(files, "image,tags\nother,cat\n")
    with pytest.raises(UserError) as error:
        open_folder(files, tags_file=tags_file)
    assert_message(error, tags_file, "none of the images", files.split_path("train"))


@pytest.mark.parametrize(
    ("class_names", "mask_values", "part"),
    [
        ((), (), "class_names"),
        (CLASS_NAMES, (8,), "mask_values"),
        (CLASS_NAMES, (8, 8), "mask_values"),
        (CLASS_NAMES, (0, 8), "mask_values"),
        (CLASS_NAMES, (8, 255), "mask_values"),
    ],
)
def test_classes_that_make_no_sense(make_voc_folder, class_names, mask_values, part):
    with pytest.raises(UserError) as error:
        VocFolder(make_voc_folder().root, "train", class_names, mask_values)
    assert_message(error, f"{part} is")


# Errors of source[i]


def test_truncated_image(make_voc_folder):
    files = make_voc_folder()
    source = open_folder(files)
    path = files.image_path("train_000")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError) as error:
        source[0]
    assert_message(error, path, "truncated")


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n\x00\x00\x00\x00junk"])
def test_files_that_are_no_pictures(make_voc_folder, content):
    files = make_voc_folder()
    source = open_folder(files)
    files.image_path("train_000").write_bytes(content)
    with pytest.raises(UserError) as error:
        source[0]
    assert_message(error, files.image_path("train_000"))


def test_truncated_mask(make_voc_folder):
    files = make_voc_folder()
    source = open_folder(files)
    path = files.mask_path("train_000")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError) as error:
        source[0]
    assert_message(error, path)


def test_unknown_mask_value(make_voc_folder):
    files = make_voc_folder()
    source = open_folder(files)
    mask = files.read_stored_mask("train_000")
    mask[0, 0] = 9
    files.write_mask("train_000", mask)
    with pytest.raises(UserError) as error:
        source[0]
    assert_message(error, files.mask_path("train_000"), "value 9", "[0, 8, 12, 255]")


def test_mask_of_colours(make_voc_folder):
    files = make_voc_folder()
    source = open_folder(files)
    with Image.open(files.mask_path("train_000")) as picture:
        picture.convert("RGB").save(files.mask_path("train_000"))
    with pytest.raises(UserError) as error:
        source[0]
    assert_message(error, files.mask_path("train_000"), "found colours")


def test_mask_of_another_size(make_voc_folder):
    files = make_voc_folder()
    source = open_folder(files)
    files.write_image("train_000", np.zeros((30, 20, 3), np.uint8))
    files.write_mask("train_000", np.zeros((20, 30), np.uint8))
    with pytest.raises(UserError) as error:
        source[0]
    assert_message(error, files.mask_path("train_000"), "30x20", "20x30")
