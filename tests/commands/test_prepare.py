"""Data prepared from official archives in miniature: what comes out, what is refused, what a second start does."""

import contextlib
import functools
import http.server
import json
import os
import pickle
import shutil
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl import flags
from PIL import Image

import configs.coco
import configs.folder
import configs.voc
from configs import digits
from rml_jax.commands import prepare as command
from rml_jax.commands.prepare import prepare
from rml_jax.config import default_config
from rml_jax.data.pipeline import train_batches
from rml_jax.data.preparation import base, voc
from rml_jax.data.preparation.coco import Coco2014
from rml_jax.data.preparation.folder import TaggedFolder
from rml_jax.data.preparation.voc import VocSbd, xml_tags
from rml_jax.data.sources import make_source, with_class_names
from rml_jax.data.sources.coco import CocoFolder
from rml_jax.data.sources.folder import PhotoFolder
from rml_jax.data.sources.prepared import PreparedData
from rml_jax.report.evaluation import evaluate_run
from rml_jax.training.loop import train
from rml_jax.utils.errors import UserError
from tests.data import archives

FOLDER_OPTIONS = {
    "class_names": (),
    "tags_file": "",
    "mask_folder": "",
    "mask_values": (),
    "val_list": "",
    "val_fraction": 0.3,
    "seed": 0,
}


def items(source):
    return [source[index] for index in range(len(source))]


def assert_same_items(prepared, raw):
    assert len(prepared) == len(raw)
    for found, expected in zip(items(prepared), items(raw), strict=True):
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[key], expected[key]) for key in expected)


def message_of(function, *arguments, **options):
    with pytest.raises(UserError) as error:
        function(*arguments, **options)
    return str(error.value)


@pytest.fixture
def photos(tmp_path):
    """Ten photographs by sub-folder, one turned by EXIF, one a grey PNG under a wrong suffix; and their masks."""
    root, masks = tmp_path / "photos", tmp_path / "masks"
    for number in range(10):
        name = f"{'cat' if number % 2 else 'dog'}/{number}"
        for folder in (root, masks):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.jpg").write_bytes(archives.jpeg(number))
        Image.fromarray(archives.stripe(1 + number % 2)).save(masks / f"{name}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(root / "dog/2.jpg").save(root / "dog/2.jpg", exif=exif)
    Image.fromarray(archives.stripe(1).T.copy()).save(masks / "dog/2.png")
    Image.new("L", archives.SIZE[::-1], 77).save(root / "cat/3.jpg", "PNG")
    return root, masks


@pytest.fixture
def folder_builder(photos, tmp_path):
    """Function of changed options -> a builder for `photos` that writes to tmp_path / "out"."""

    def make(max_bad=0.01, **changes):
        options = FOLDER_OPTIONS | {"mask_folder": str(photos[1])} | changes
        return TaggedFolder(
            root=photos[0], folder_options=options, data_dir=tmp_path / "out", max_bad=max_bad
        )

    return make


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of two images, read one by one."""
    monkeypatch.setattr(base, "SHARD_IMAGES", 2)
    monkeypatch.setattr(base, "_BLOCK", 1)


# What comes out


def test_voc_and_sbd_from_their_archives(tmp_path):
    manual = archives.pack_sbd(archives.pack_voc(tmp_path / "archives"))
    folder, lines = prepare(VocSbd(manual_dir=manual, data_dir=tmp_path / "out"))
    train = items(PreparedData(folder, "train_aug", with_masks=True))
    assert [item["id"] for item in train] == ["a", "b", "c", "d"]
    # VOC's own masks with their borders of 255, SBD's for the others, without.
    for item, mask in zip(
        train, [archives.stripe(1, border=True)] * 2 + [archives.stripe(20)] * 2, strict=True
    ):
        np.testing.assert_array_equal(item["mask"], mask)
        assert np.flatnonzero(item["tags"]).tolist() == [mask[4, 0] - 1]
    assert [item["id"] for item in items(PreparedData(folder, "val"))] == ["v", "w"]
    assert "train_aug: 4 images (officially 10582), " in lines[1]
    assert "VOC's train: 2 images (officially 1464), SBD's train and val: 4" in lines[2]
    assert "both without 1 of VOC's val; 4 listed, 0 rejected" in lines[2]
    assert "images per class: aeroplane 2, bicycle 0, " in lines[4]
    assert "val: 2 images (officially 1449), " in lines[5]


def test_voc_with_tags_from_the_annotations(tmp_path):
    manual = archives.pack_sbd(archives.unpack(archives.voc_files(), tmp_path / "unpacked"))
    folder, lines = prepare(VocSbd(config="xml", manual_dir=manual, data_dir=tmp_path / "out"))
    assert lines[0].startswith("voc_sbd, tags from xml; ")
    tags = [np.flatnonzero(item["tags"]).tolist() for item in items(PreparedData(folder, "train_aug"))]
    assert tags == [[0, 19], [0], [0], [0]]


def test_voc_beside_the_folder_of_another_year(tmp_path):
    manual = archives.pack_sbd(archives.unpack(archives.voc_files(), tmp_path / "unpacked"))
    other = {name.replace("VOC2012", "VOC2007"): b"another year's" for name in archives.voc_files()}
    archives.unpack(other, manual)
    archives.pack_tar(other, manual / "VOCtrainval_06-Nov-2007.tar")
    folder, lines = prepare(VocSbd(manual_dir=manual, data_dir=tmp_path / "out"))
    assert len(PreparedData(folder, "train_aug")) == 4
    assert f"{manual / 'VOCdevkit/VOC2012'}, " in lines[0]


@pytest.mark.parametrize("packed", [True, False])
def test_voc_with_the_masks_that_others_converted(tmp_path, packed):
    manual = archives.unpack(archives.voc_files(), tmp_path / "unpacked")
    masks = {f"SegmentationClassAug/{name}.png": archives.png(archives.stripe(7)) for name in "abcdevw"}
    if packed:
        junk = {"__MACOSX/SegmentationClassAug/._a.png": b"junk"}
        archives.pack_zip(junk | masks, manual / "SegmentationClassAug.zip")
    else:
        archives.unpack(masks, manual / "VOCdevkit" / "VOC2012")
    folder, lines = prepare(VocSbd(manual_dir=manual, data_dir=tmp_path / "out"))
    train = items(PreparedData(folder, "train_aug", with_masks=True))
    assert [item["id"] for item in train] == list("abcde")
    assert all((item["mask"] == archives.stripe(7)).all() for item in train)
    assert "all masks in SegmentationClassAug but those of VOC's val" in lines[2]


@pytest.mark.parametrize("packed", [True, False])
def test_coco_gives_what_its_folder_gives(tmp_path, packed):
    root = archives.unpack(archives.coco_files(), tmp_path / "unpacked")
    manual = archives.pack_coco(tmp_path / "archives") if packed else root
    folder, lines = prepare(Coco2014(manual_dir=manual, data_dir=tmp_path / "out"))
    for split in ("train2014", "val2014"):
        assert_same_items(
            PreparedData(folder, split, with_masks=True), CocoFolder(root, split, with_masks=True)
        )
    assert "train2014: 2 images (officially 82081), " in lines[1]
    assert (
        "3 in the annotation file; images that are left out, as they have no annotation: 1; 2 listed, 0 rejected"
        in lines[2]
    )
    # Tags by hand: person, stop sign and toothbrush in the first image, dog in the second.
    tags = [np.flatnonzero(item["tags"]).tolist() for item in items(PreparedData(folder, "val2014"))]
    assert tags == [[0, 11, 79], [16]]


def write_welds(root):
    """Data of its own categories under the names of COCO's files; boxes alone for training, one annotation wrong."""
    files = archives.coco_files()
    for split in ("train2014", "val2014"):
        name = f"annotations/instances_{split}.json"
        content = json.loads(files[name])
        content["categories"] = [{"id": number, "name": f"weld {number}"} for number in (1, 13, 18, 90)]
        content["annotations"].append(archives.thing(2, 77, archives.polygon(1, 1, 9, 9), 64))
        for entry in content["annotations"] if split == "train2014" else ():
            del entry["segmentation"]
        files[name] = json.dumps(content).encode()
    return archives.unpack(files, root)


def test_coco_of_other_categories_with_a_wrong_annotation(tmp_path):
    """They became COCO's classes, and one wrong annotation ended everything whatever --max_bad said."""
    root = write_welds(tmp_path / "unpacked")
    folder, lines = prepare(Coco2014(manual_dir=root, data_dir=tmp_path / "out", max_bad=0.5))
    assert any("annotation 5: found category_id 77" in line for line in lines)
    config = configs.coco.get_config()
    config.data.root = str(folder)
    config = with_class_names(config)
    assert config.data.class_names == ("weld 1", "weld 13", "weld 18", "weld 90")
    assert config.data.category_ids == (1, 13, 18, 90)
    source = make_source(config.data, "train2014", with_masks=False)
    assert [source[index]["tags"].tolist() for index in range(2)] == [[1, 1, 0, 1], [0, 0, 1, 0]]
    with pytest.raises(UserError, match="2 of 2 images of train2014 have no mask"):
        make_source(config.data, "train2014", with_masks=True)
    assert np.unique(make_source(config.data, "val2014", with_masks=True)[0]["mask"]).tolist() == [1, 2, 4]


def test_folder_gives_what_it_gives_unprepared(photos, folder_builder):
    builder = folder_builder()
    folder, _ = prepare(builder)
    options = FOLDER_OPTIONS | {"mask_folder": str(photos[1]), "with_masks": True}
    for split in ("train", "val"):
        assert_same_items(
            PreparedData(folder, split, with_masks=True), PhotoFolder(photos[0], split == "train", **options)
        )
    assert PreparedData(folder, "train").class_names == ("cat", "dog")
    assert builder.tags_from == "names of sub-folders"


def test_prepared_images_of_16_bits_and_of_other_channels_are_decoded_by_our_reader(photos, folder_builder):
    """TFDS without TensorFlow wraps 16-bit grey modulo 256 and ignores the number of channels declared."""
    height, width = archives.SIZE
    ramp = np.linspace(0, 65535, height * width).astype(np.uint16).reshape(height, width)
    Image.fromarray(ramp).save(photos[0] / "cat/5.jpg", "PNG")
    alpha = np.full((height, width, 4), 255, np.uint8)
    alpha[..., :3] = (10, 20, 30)
    Image.fromarray(alpha).save(photos[0] / "cat/7.jpg", "PNG")
    folder, _ = prepare(folder_builder(val_fraction=0.0))
    images = {item["id"]: item["image"] for item in items(PreparedData(folder, "train"))}
    grey = np.repeat((ramp.astype(np.int64) * 255 // 65535)[..., None], 3, axis=2)
    np.testing.assert_array_equal(images["cat/5"], grey)
    np.testing.assert_array_equal(images["cat/7"], alpha[..., :3])
    assert {(image.dtype.name, image.shape[2]) for image in images.values()} == {("uint8", 3)}


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_batches_are_those_of_the_raw_folder(photos, folder_builder, workers):
    flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl flags.
    folder, _ = prepare(folder_builder())
    raw = PhotoFolder(photos[0], True, **FOLDER_OPTIONS)
    config = default_config()
    config.train.batch_size, config.train.crop_size, config.train.seed = 3, 16, 5
    config.data.workers = workers
    batches = []
    for source in (PreparedData(folder, "train"), raw):
        with contextlib.closing(train_batches(config, source)) as stream:
            batches.append([next(stream) for _ in range(5)])
    for found, expected in zip(*batches, strict=True):
        assert all(np.array_equal(found[key], expected[key]) for key in ("image", "box", "tags"))


def test_prepared_data_is_a_tfds_data_set(folder_builder):
    folder, _ = prepare(folder_builder())
    source = tfds.builder_from_directory(folder).as_data_source("val")
    assert len(source) == 3
    example = source[0]
    assert example["image"].shape[2] == 3
    assert example["mask"].shape == (*example["image"].shape[:2], 1)


def test_classes_in_another_order_or_fewer(folder_builder):
    folder, _ = prepare(folder_builder())
    turned, straight = (
        PreparedData(folder, "train", names, with_masks=True) for names in (("Dog", "cat"), ("cat", "dog"))
    )
    swap = np.uint8([0, 2, 1])
    for one, other in zip(items(turned), items(straight), strict=True):
        np.testing.assert_array_equal(one["tags"], other["tags"][::-1])
        np.testing.assert_array_equal(one["mask"], swap[other["mask"]])
    copy = pickle.loads(pickle.dumps(turned))
    assert_same_items(copy, turned)
    only_cats = PreparedData(folder, "train", ("cat",))
    place = [item["tags"][1] for item in items(straight)].index(1)
    assert "found tag 'dog', expected one of cat" in message_of(lambda: only_cats[place])
    assert "has no class 'cow': expected some of cat, dog" in message_of(
        PreparedData, folder, "train", ("cow",)
    )
    assert "has no split 'test': expected one of train, val" in message_of(PreparedData, folder, "test")


# Stopped and started again


def stop_after(monkeypatch, count):
    """Makes decoding the image after `count` others stop the run as Ctrl-C does. Returns the names decoded so far."""
    decoded, decode = [], base.decode_image

    def decode_or_stop(data, name, upright):
        if len(decoded) == count:
            raise KeyboardInterrupt
        decoded.append(name)
        return decode(data, name, upright)

    monkeypatch.setattr(base, "decode_image", decode_or_stop)
    return decoded


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if "json" not in path.name}


@pytest.mark.usefixtures("small_shards")
def test_a_stopped_run_goes_on_after_its_last_whole_shard(folder_builder, tmp_path, monkeypatch):
    folder, expected_lines = prepare(folder_builder())
    expected = contents(folder)
    shutil.rmtree(tmp_path / "out")
    with monkeypatch.context() as patch:
        stop_after(patch, 5)  # In the third of four shards of the training part.
        with pytest.raises(KeyboardInterrupt):
            prepare(folder_builder())
    assert not folder.exists()
    with monkeypatch.context() as patch:
        decoded = stop_after(patch, 100)
        _, lines = prepare(folder_builder())
    assert len(decoded) == 10 - 4
    assert contents(folder) == expected
    assert lines == expected_lines
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.usefixtures("small_shards")
def test_damaged_shards_and_those_of_another_state_are_made_again(
    photos, folder_builder, tmp_path, monkeypatch
):
    def stop():
        with monkeypatch.context() as patch:
            stop_after(patch, 5)
            with pytest.raises(KeyboardInterrupt):
                prepare(folder_builder())
        return sorted((tmp_path / "out" / "tagged_folder" / "1.0.0.partial").glob("*-0000?-of-0000?"))

    def rest():
        with monkeypatch.context() as patch:
            decoded = stop_after(patch, 100)
            folder, _ = prepare(folder_builder())
        shutil.rmtree(folder)
        return len(decoded)

    first, second = stop()
    second.write_bytes(second.read_bytes()[:-2000])
    assert rest() == 10 - 2
    assert len(stop()) == 2
    (photos[0] / "dog/4.jpg").write_bytes(archives.jpeg(99))
    assert rest() == 10
    assert first.parent.exists() is False


def test_finished_data_is_not_made_again(photos, folder_builder, monkeypatch):
    folder, lines = prepare(folder_builder())
    decoded = stop_after(monkeypatch, 0)
    again, lines_again = prepare(folder_builder())
    assert decoded == []
    assert (again, lines_again[1:]) == (folder, lines)
    assert lines_again[0] == f"{folder} already exists; delete it to prepare it again"
    (photos[0] / "dog/new.jpg").write_bytes(archives.jpeg(50))
    assert f"{folder} was prepared from other files or settings" in message_of(prepare, folder_builder())


# Bad files


def test_bad_images_are_left_out_with_their_reasons(photos, folder_builder):
    root, masks = photos
    (root / "dog/0.jpg").write_bytes(b"")
    (root / "cat/1.jpg").write_bytes(archives.jpeg(1)[:-300])
    (root / "loop.jpg").symlink_to(root / "loop.jpg")
    (root / "dog/loop.jpg").symlink_to(root / "dog/loop.jpg")
    Image.new("L", (5, 5)).save(masks / "dog/4.png")
    message = message_of(prepare, folder_builder())
    assert message.startswith("4 of 11 images are bad, expected at most 1.00% (--max_bad); all of them: ")
    folder, lines = prepare(folder_builder(max_bad=0.5))
    rejected = [line.strip() for line in lines if line.startswith("  rejected: ")]
    assert len(rejected) == 4
    for reason in (
        f"{root / 'dog/0.jpg'}: found an empty file",
        f"{root / 'cat/1.jpg'}: ",
        f"{root / 'dog/loop.jpg'}: Too many levels of symbolic links",
        f"mask of {root / 'dog/4.jpg'}: found a mask of 5x5 pixels, expected 48x40",
    ):
        assert any(reason in line for line in rejected)
    assert len(PreparedData(folder, "train")) + len(PreparedData(folder, "val")) == 7
    assert len(items(PreparedData(folder, "train"))) == len(PreparedData(folder, "train"))


def test_one_bad_image_of_any_kind_ends_no_preparation(photos, folder_builder, monkeypatch):
    read_mask = PhotoFolder.read_mask

    def fail(self, index):
        if self.photo(index).id == "dog/4":
            raise ZeroDivisionError("what no one expected")
        return read_mask(self, index)

    monkeypatch.setattr(PhotoFolder, "read_mask", fail)
    monkeypatch.setattr(TaggedFolder, "_check_masks", lambda self: None)
    folder, _ = prepare(folder_builder(max_bad=0.3))
    rejected = {}
    for facts in json.loads((folder / "report.json").read_text())["splits"].values():
        rejected |= facts["rejected"]
    assert list(rejected) == ["dog/4"]
    assert "what no one expected" in rejected["dog/4"]


def test_file_names_that_are_no_utf_8(photos, folder_builder):
    root, masks = photos
    for folder, name in ((root, "1.jpg"), (masks, "1.png")):
        (folder / "cat" / name).unlink()
    (root / "cat/3.jpg").rename(root / "cat" / os.fsdecode(b"gut\xe9.jpg"))
    (masks / "cat/3.png").rename(masks / "cat/gut%E9.png")
    (root / "dog" / os.fsdecode(b"b\xf6se.jpg")).write_bytes(b"no image")
    folder, _ = prepare(folder_builder(max_bad=0.3, mask_folder="", val_fraction=0.0))
    assert "cat/gut%E9" in [item["id"] for item in items(PreparedData(folder, "train"))]
    facts = json.loads((folder / "report.json").read_text())["splits"]["train"]
    assert list(facts["rejected"]) == ["dog/b%F6se"]


def test_a_report_of_bad_names_can_be_written(photos, folder_builder, tmp_path):
    (photos[0] / "dog" / os.fsdecode(b"b\xf6se.jpg")).write_bytes(b"no image")
    assert "1 of " in message_of(prepare, folder_builder(max_bad=0.0, mask_folder="", val_fraction=0.0))
    assert "no image" in next((tmp_path / "out").rglob("rejected.txt")).read_text()


@pytest.mark.usefixtures("small_shards")
def test_after_too_many_bad_images_only_their_shards_are_made_again(photos, folder_builder, monkeypatch):
    path = photos[0] / "cat/1.jpg"
    good, times = path.read_bytes(), path.stat()
    path.write_bytes(b"\0" * len(good))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert f"{path}: found no image" in message_of(prepare, folder_builder())
    path.write_bytes(good)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    decoded = stop_after(monkeypatch, 100)
    prepare(folder_builder())
    assert str(path) in decoded
    assert len(decoded) <= 2


@pytest.mark.usefixtures("small_shards")
def test_a_shard_of_bad_images_only(photos, folder_builder):
    part = PhotoFolder(photos[0], True, **FOLDER_OPTIONS)
    train = [part.photo(index).id for index in range(len(part))]
    for name in train[2:4]:
        (photos[0] / f"{name}.jpg").write_bytes(b"junk")
    folder, _ = prepare(folder_builder(max_bad=0.2))
    left = items(PreparedData(folder, "train"))
    assert [item["id"] for item in left] == train[:2] + train[4:]


def test_validation_images_without_a_mask(photos, folder_builder):
    for path in photos[1].glob("*/*.png"):
        path.unlink()
    assert "3 of 10 images are bad" in message_of(prepare, folder_builder(max_bad=0.2))


def test_data_prepared_without_masks_trains_but_is_not_scored(folder_builder):
    folder, lines = prepare(folder_builder(mask_folder=""))
    assert len(items(PreparedData(folder, "train"))) == 7
    assert "  without a mask: 3" in lines
    message = message_of(PreparedData, folder, "val", with_masks=True)
    assert message.startswith(f"{folder}: 3 of 3 images of val have no mask, expected masks")


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("write() failed: No space left on device")]
)
def test_full_disk(folder_builder, monkeypatch, error):
    def fill(_, path, examples):
        next(iter(examples))
        path.write_bytes(b"half a shard")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(tfds.core.ExampleWriter, "write", fill)
        message = message_of(prepare, folder_builder())
    assert "No space left" in message
    assert "expected room to write" in message
    folder, _ = prepare(folder_builder())
    assert len(items(PreparedData(folder, "train"))) == 7
    assert list(folder.parent.iterdir()) == [folder]


def test_array_record_notices_a_full_disk(tmp_path):
    (tmp_path / "full").symlink_to("/dev/full")
    writer = tfds.core.ExampleWriter(tfds.core.FileFormat.ARRAY_RECORD)
    with pytest.raises(RuntimeError, match="No space left"):
        writer.write(tmp_path / "full", [(number, bytes(100)) for number in range(9)])


@pytest.mark.parametrize(
    "text",
    [
        "<annotation>",
        "<annotation><object><name>cow</name></object><object><name>moon</name></object></annotation>",
    ],
)
def test_broken_annotations(text):
    assert "PATH/a.xml: " in message_of(xml_tags, text.encode(), "PATH/a.xml")


@pytest.mark.parametrize("encoding", ["gb2312", "gbk", "big5", "shift_jis", "latin-1", "utf-8", "utf-16"])
def test_annotations_in_any_encoding(encoding):
    text = f'<?xml version="1.0" encoding="{encoding}"?><annotation><object><name>cat</name></object></annotation>'
    assert xml_tags(text.encode(encoding), "a.xml") == (7,)


def test_bad_files_in_archives(tmp_path):
    files = archives.voc_files() | archives.sbd_files()
    files["VOCdevkit/VOC2012/JPEGImages/a.jpg"] = b"junk"
    files["VOCdevkit/VOC2012/Annotations/v.xml"] = b"junk"
    files["benchmark_RELEASE/dataset/cls/c.mat"] = b"junk"
    del files["VOCdevkit/VOC2012/JPEGImages/d.jpg"]
    archives.pack_tar(files, tmp_path / "archives" / "2012_and_SBD.tar")
    archives.pack_tar(archives.sbd_files() | files, tmp_path / "archives" / "benchmark.tar")
    folder, lines = prepare(
        VocSbd(config="xml", manual_dir=tmp_path / "archives", data_dir=tmp_path / "out", max_bad=0.7)
    )
    rejected = [line for line in lines if line.startswith("  rejected: ")]
    assert len(rejected) == 4
    for part in (
        "JPEGImages/a.jpg: found no image",
        "Annotations/v.xml: ",
        "cls/c.mat: ",
        "d.jpg: no such file",
    ):
        assert sum(part in line for line in rejected) == 1
    assert [
        [item["id"] for item in items(PreparedData(folder, split))] for split in ("train_aug", "val")
    ] == [["b"], ["w"]]
    del files["VOCdevkit/VOC2012/JPEGImages/b.jpg"]
    archives.pack_tar(files, tmp_path / "archives" / "2012_and_SBD.tar")
    again = VocSbd(config="xml", manual_dir=tmp_path / "archives", data_dir=tmp_path / "other", max_bad=0.9)
    assert "train_aug: no image is left of 4" in message_of(prepare, again)


# What is missing


def test_missing_archives(tmp_path):
    make = functools.partial(VocSbd, manual_dir=tmp_path / "archives", data_dir=tmp_path / "out")
    assert f"--manual_dir={tmp_path / 'archives'}: no such folder" in message_of(lambda: prepare(make()))
    (tmp_path / "archives").mkdir()
    assert "found no ImageSets/Segmentation/val.txt, in no folder, *2012*.tar" in message_of(
        lambda: prepare(make())
    )
    archives.pack_voc(tmp_path / "archives")
    assert "found neither benchmark.tgz" in message_of(lambda: prepare(make()))
    assert not list((tmp_path / "out").rglob("*.array_record*"))
    coco = functools.partial(Coco2014, manual_dir=tmp_path / "archives", data_dir=tmp_path / "out")
    assert "found no instances_train2014.json" in message_of(lambda: prepare(coco()))
    archives.pack_coco(tmp_path / "archives")
    (tmp_path / "archives" / "val2014.zip").unlink()
    assert "found no folder val2014 and no val2014.zip" in message_of(lambda: prepare(coco()))


def test_lost_shards_are_noticed(folder_builder):
    folder, _ = prepare(folder_builder())
    path = next(folder.glob("*train*"))
    path.unlink()
    assert message_of(PreparedData, folder, "train").startswith(f"{path}: no such file")
    (folder / "dataset_info.json").unlink()
    assert message_of(PreparedData, folder, "train").startswith(f"{folder}: ")


# Downloads


@pytest.fixture
def server(tmp_path):
    """A web server of tmp_path / "served": its address."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_downloads_are_checked_against_their_checksums(server, tmp_path, monkeypatch):
    archive = archives.pack_tar(archives.voc_files(), tmp_path / "served" / "VOC.tar")
    manual = archives.pack_sbd(tmp_path / "archives")
    url = f"{server}/VOC.tar"
    monkeypatch.setattr(voc, "VOC_URL", url)
    info = tfds.core.download.checksums.compute_url_info(archive)
    monkeypatch.setattr(VocSbd, "url_infos", {url: info})
    make = functools.partial(VocSbd, manual_dir=manual, data_dir=tmp_path / "out")
    assert "found no ImageSets/Segmentation/val.txt" in message_of(lambda: prepare(make()))
    folder, _ = prepare(make(downloads=True))
    assert len(PreparedData(folder, "train_aug")) == 4
    shutil.rmtree(tmp_path / "out")
    archive.write_bytes(archive.read_bytes()[:-1] + b"x")
    assert "wrong checksum" in message_of(lambda: prepare(make(downloads=True)))
    archive.unlink()
    assert "404" in message_of(lambda: prepare(make(downloads=True)))


def test_checksums_of_all_urls_are_known():
    urls = {"VOCtrainval_11-May-2012.tar", "train2014.zip", "val2014.zip", "annotations_trainval2014.zip"}
    assert {info.filename for info in VocSbd.url_infos.values()} == urls
    assert voc.VOC_URL in VocSbd.url_infos


# The command


def run(monkeypatch, *arguments):
    command.main([*map(str, arguments)])


def test_command_prepares_and_says_what_comes_next(photos, tmp_path, monkeypatch, capsys):
    tags = tmp_path / "tags.csv"
    tags.write_text("image,tags\ncat/1,Cat\ncat/3,cat|dog\ndog/2,\n")
    options = [
        f"--root={photos[0]}",
        f"--tags={tags}",
        "--classes=dog,cat",
        "--val_fraction=0",
        f"--out={tmp_path / 'o'}",
    ]
    run(monkeypatch, "folder", *options)
    out = capsys.readouterr().out
    folder = tmp_path / "o/tagged_folder/1.0.0"
    assert f"next: rml-jax train --config=folder --config.data.root={folder} " in out
    assert "images per class: dog 1, cat 2" in out
    assert json.loads((folder / "report.json").read_text())["splits"].keys() == {"train"}
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "folder", *options, "--seed=1", "--tags=none.csv")
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: none.csv: No such file")


def test_command_names_a_class_with_a_comma_and_counts_tags(photos, tmp_path, monkeypatch, capsys):
    tags = tmp_path / "tags.csv"
    tags.write_text('image,tags\ncat/1,"""nut, bolt"""\ncat/3,"cat,""nut, bolt"""\ndog/2,\n')
    options = [f"--root={photos[0]}", f"--tags={tags}", "--val_fraction=0", f"--out={tmp_path / 'o'}"]
    run(monkeypatch, "folder", *options, '--classes=cat,"nut, bolt",owl')
    assert "images per class: cat 1, nut, bolt 2, owl 0" in capsys.readouterr().out
    source = PreparedData(tmp_path / "o/tagged_folder/1.0.0", "train", ("nut, bolt", "cat"))
    assert sorted(tags for _, tags in source.item_tags()) == [(), (0,), (0, 1)]


def test_command_refuses_the_classes_that_training_refuses(photos, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(
            monkeypatch,
            "folder",
            f"--root={photos[0]}",
            f"--out={tmp_path / 'o'}",
            "--classes=cat,dog,Background",
        )
    assert "found the class 'Background'" in capsys.readouterr().err


def test_command_stopped_by_the_user(photos, tmp_path, monkeypatch, capsys):
    stop_after(monkeypatch, 1)
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "folder", f"--root={photos[0]}", f"--out={tmp_path / 'o'}")
    assert stop.value.code == 130
    assert "stopped; run the same command to continue" in capsys.readouterr().err


@pytest.mark.parametrize("share", ["1", "-0.1", "many"])
def test_command_refuses_shares_that_make_no_sense(monkeypatch, capsys, share):
    with pytest.raises(SystemExit):
        run(monkeypatch, "voc", "--manual_dir=x", "--out=y", f"--max_bad={share}")
    assert "--max_bad" in capsys.readouterr().err


# The whole way


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "voc", "coco"])
def test_from_archives_to_scores(kind, photos, tmp_path, monkeypatch, capsys):
    if kind == "folder":
        sources = [f"--root={photos[0]}", f"--masks={photos[1]}"]
    else:
        pack = {
            "voc": lambda folder: archives.pack_sbd(archives.pack_voc(folder)),
            "coco": archives.pack_coco,
        }
        sources = [f"--manual_dir={pack[kind](tmp_path / 'archives')}"]
    run(monkeypatch, kind, *sources, f"--out={tmp_path / 'out'}")
    root = capsys.readouterr().out.partition("--config.data.root=")[2].partition(" ")[0]
    config = digits.get_config()
    config.data.update(
        {"folder": configs.folder, "voc": configs.voc, "coco": configs.coco}[kind].get_config().data
    )
    config.data.root = root
    config.loss.start_step, config.pseudo_label.dilations = 2, (1, 2)
    config.train.steps, config.train.batch_size, config.train.crop_size = 4, 2, 32
    config.checkpoint.every, config.log.every, config.log.pictures_every = 4, 1, 0
    config.eval.canvases, config.eval.batch_size, config.eval.pictures = ((48, 48),), 2, 2
    state = train(config, tmp_path / "run")
    assert int(state.step) == 4
    metrics, page = evaluate_run(with_class_names(config), tmp_path / "run", config.data.val_split)
    assert metrics["images"] == {"folder": 1, "voc": 2, "coco": 2}[kind]
    assert metrics["dataset"] == kind
    assert page.exists()
