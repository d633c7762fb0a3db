"""Miniature data sets in the official archives' formats."""

import io
import json
import tarfile
import zipfile

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.io import savemat

from rml_jax.data.sources.coco_classes import CLASS_NAMES, COCO_IDS

SIZE = (40, 48)


def jpeg(seed, size=SIZE):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    return _encoded(Image.fromarray(pixels), "JPEG")


def png(mask):
    return _encoded(Image.fromarray(mask), "PNG")


def stripe(number, top=4, border=False):
    """A mask with a stripe of one class, with VOC's border of 255 around it if wanted."""
    mask = np.zeros(SIZE, np.uint8)
    mask[top : top + 8] = number
    if border:
        mask[[top - 1, top + 8]] = 255
    return mask


def voc_files():
    """VOC 2012 as its archive unpacks it: train a, b; val v, w; all images of a and b to e, v, w.

    The masks have class 1 and a border; the XML files say class 1, and for a class 20 besides.
    """
    root = "VOCdevkit/VOC2012"
    files = {f"{root}/JPEGImages/{name}.jpg": jpeg(number) for number, name in enumerate("abcdevw")}
    files |= {f"{root}/SegmentationClass/{name}.png": png(stripe(1, border=True)) for name in "abvw"}
    files |= {
        f"{root}/Annotations/{name}.xml": _annotation(["aeroplane"] + ["tvmonitor"] * (name == "a")).encode()
        for name in "abcdevw"
    }
    lists = {"train": "a\nb\n", "val": "v\nw\n", "trainval": "a\nb\nv\nw\n"}
    return files | {
        f"{root}/ImageSets/Segmentation/{split}.txt": text.encode() for split, text in lists.items()
    }


def sbd_files():
    """SBD as its archive unpacks it: train b, c, w; val d. Its masks have class 20 and no border."""
    root = "benchmark_RELEASE/dataset"
    files = {f"{root}/train.txt": b"b\nc\nw\n", f"{root}/val.txt": b"d\n", f"{root}/img/c.jpg": jpeg(2)}
    for name in "bcdw":
        files[f"{root}/cls/{name}.mat"] = _mat(stripe(20))
        files[f"{root}/inst/{name}.mat"] = b"instances, which nobody reads"
    return files


COCO_CATEGORIES = [{"id": number, "name": name} for number, name in zip(COCO_IDS, CLASS_NAMES, strict=True)]


def coco_files():
    """COCO 2014 as its archives unpack it: per split three images, the second without objects.

    The first has a polygon (person) under compressed run lengths (stop sign) over a crowd in plain run lengths
    (toothbrush); the third has two polygons (dog).
    """
    files = {}
    for split in ("train2014", "val2014"):
        names = {number: f"COCO_{split}_{number:012d}.jpg" for number in (1, 2, 3)}
        files |= {f"{split}/{name}": jpeg(number) for number, name in names.items()}
        content = {
            "images": [
                {"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
                for number, name in names.items()
            ],
            "annotations": [
                thing(1, 13, _packed(slice(4, 8), slice(4, 8)), 16),
                thing(1, 1, polygon(2, 2, 12, 12), 100),
                thing(1, 90, {"counts": [0, SIZE[0] * SIZE[1]], "size": SIZE}, SIZE[0] * SIZE[1], iscrowd=1),
                thing(3, 18, polygon(0, 0, 20, 10) + polygon(0, 20, 20, 30), 400),
            ],
            "categories": COCO_CATEGORIES,
        }
        files[f"annotations/instances_{split}.json"] = json.dumps(content).encode()
    return files


def unpack(files, folder):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def pack_zip(files, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def pack_tar(files, path):
    """A tar, compressed if the name ends in gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def pack_voc(folder):
    pack_tar(voc_files(), folder / "VOCtrainval_11-May-2012.tar")
    return folder


def pack_sbd(folder):
    pack_tar(sbd_files(), folder / "benchmark.tgz")
    return folder


def pack_coco(folder):
    files = coco_files()
    for name, prefix in (
        ("train2014", "train2014/"),
        ("val2014", "val2014/"),
        ("annotations_trainval2014", "annotations/"),
    ):
        part = {path: data for path, data in files.items() if path.startswith(prefix)}
        pack_zip(part, folder / f"{name}.zip")
    return folder


def _encoded(picture, kind):
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def _annotation(names):
    things = "".join(
        f"<object><name>{name}</name><difficult>0</difficult><part><name>head</name></part></object>"
        for name in names
    )
    return f"<annotation><folder>VOC2012</folder>{things}</annotation>"


def _mat(mask):
    file = io.BytesIO()
    savemat(file, {"GTcls": {"Segmentation": mask, "CategoriesPresent": np.uint8([20])}})
    return file.getvalue()


def polygon(top, left, bottom, right):
    return [[left, top, right, top, right, bottom, left, bottom]]


def _packed(rows, columns):
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[rows, columns] = 1
    return {"counts": coco_mask.encode(mask)["counts"].decode(), "size": SIZE}


def thing(image_id, category_id, segmentation, area, iscrowd=0):
    return {
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": segmentation,
        "area": area,
        "iscrowd": iscrowd,
    }
