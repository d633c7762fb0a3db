"""Predictions as data sets that other tools load: in COCO's formats and in PASCAL VOC's."""

import collections
import json
import sys
from pathlib import PurePosixPath

import numpy as np
from pycocotools import mask as coco_mask

from rml_jax import visualize
from rml_jax.data.images import read_bytes
from rml_jax.data.masks import LABEL_MAP_FILE
from rml_jax.data.sources.coco_annotations import load_json
from rml_jax.data.sources.coco_categories import CocoCategories, as_id, choose_categories, read_categories
from rml_jax.data.sources.coco_classes import CLASS_NAMES, COCO_IDS
from rml_jax.evaluation.masks import file_numbers, palette_png
from rml_jax.utils.errors import UserError
from rml_jax.utils.files import write_file

FORMATS = ("masks", "coco", "voc")
"""What `rml-jax predict --format` takes; masks are written in any case."""


class CocoReference:
    """The ids in an annotation file, for predictions that are compared with it.

    Args:
      path: the file in COCO's format; annotations may be missing.

    Raises:
      UserError: if it can't be read or is in another format.
    """

    def __init__(self, path):
        self._path = path
        self._content = load_json(read_bytes(path), path, keys=("images",))
        self._ids, self._alike = {}, collections.defaultdict(list)
        for number, entry in enumerate(self._content["images"], 1):
            key = as_id(entry.get("id")) if isinstance(entry, dict) else None
            if key is None or not isinstance(entry.get("file_name"), str):
                raise UserError(f"{path} image {number}: found no id or no file_name, expected both")
            file = entry["file_name"].replace("\\", "/")
            self._ids[file] = key
            self._alike[PurePosixPath(file).name].append(file)

    def categories(self, class_names):
        """Returns the CocoCategories of some classes. Raises UserError if the file lacks one."""
        return choose_categories(read_categories(self._content, self._path)[0], class_names, self._path)

    def image_id(self, file):
        """Returns the id of an image, or None if there is none or it is ambiguous.

        Args:
          file: its path with forward slashes, str. Folders may be missing on either side.
        """
        if file in self._ids:
            return self._ids[file]
        alike = [
            name
            for name in self._alike[PurePosixPath(file).name]
            if f"/{file}".endswith(f"/{name}") or f"/{name}".endswith(f"/{file}")
        ]
        return self._ids[alike[0]] if len(alike) == 1 else None


class CocoResults:
    """COCO's format of results, `coco.json`: a compressed run-length code per class and image, with a score.

    Args:
      root: pathlib.Path of the output folder.
      categories: CocoCategories of the C classes.
      image_ids: dict from the name of each image to its id.
    """

    def __init__(self, root, categories, image_ids):
        self._path, self._categories, self._image_ids = root / "coco.json", categories, image_ids
        self._results = []

    def add(self, name, prediction):
        """Adds a `rml_jax.inference.predictor.Prediction`."""
        for number, binary in _binary_masks(prediction.mask):
            code = coco_mask.encode(binary)
            self._results.append(
                {
                    "image_id": self._image_ids[name],
                    "category_id": self._categories.ids[number - 1],
                    "score": prediction.tags[self._categories.names[number - 1]],
                    "segmentation": {"size": code["size"], "counts": code["counts"].decode("ascii")},
                }
            )

    def content(self):
        """Returns what was added, as JSON-like values, for the `extend` of another process's object."""
        return self._results

    def extend(self, content):
        """Adds what another process's object was given (`content`)."""
        self._results += content

    def write(self):
        """Writes the file."""
        write_file(self._path, json.dumps(self._results) + "\n")
        if not self._results:
            print(
                f"{self._path}: no object in any image; COCO.loadRes refuses an empty list", file=sys.stderr
            )


class CocoDataset:
    """A data set in COCO's format, `annotations/instances_default.json`.

    An annotation is all of a class in an image: plain run lengths, which unlike polygons lose no pixel and which
    pycocotools, supervision, datumaro and CVAT read.

    Args:
      root, categories: see CocoResults. If an id is 0, which datumaro takes for no class, the file has 1..C instead.
      image_ids: dict from the name of each image to its id, int.
      files: dict from the name of each image to its `file_name`.
    """

    def __init__(self, root, categories, image_ids, files):
        self._path = root / "annotations" / "instances_default.json"
        if 0 in categories.ids:
            categories = CocoCategories(categories.names, tuple(range(1, len(categories.ids) + 1)))
        self._categories, self._image_ids, self._files = categories, image_ids, files
        self._images, self._annotations = [], []

    def add(self, name, prediction):
        """Adds a `rml_jax.inference.predictor.Prediction`."""
        height, width = prediction.mask.shape
        image_id = self._image_ids[name]
        self._images.append(
            {"id": image_id, "file_name": self._files[name], "width": width, "height": height}
        )
        for number, binary in _binary_masks(prediction.mask):
            box = coco_mask.toBbox(coco_mask.encode(binary))
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": image_id,
                    "category_id": self._categories.ids[number - 1],
                    "bbox": box.tolist(),
                    "area": int(binary.sum()),
                    "iscrowd": 0,
                    "segmentation": {"size": [height, width], "counts": _run_lengths(binary)},
                    "score": prediction.tags[self._categories.names[number - 1]],
                }
            )

    def content(self):
        """See `CocoResults`."""
        return [self._images, self._annotations]

    def extend(self, content):
        """See `CocoResults`."""
        self._images += content[0]
        self._annotations += [
            annotation | {"id": number}
            for number, annotation in enumerate(content[1], len(self._annotations) + 1)
        ]

    def write(self):
        """Writes the file."""
        categories = [
            {"id": number, "name": name, "supercategory": ""}
            for name, number in zip(self._categories.names, self._categories.ids, strict=True)
        ]
        content = {
            "info": {},
            "licenses": [],
            "images": sorted(self._images, key=lambda image: image["id"]),
            "categories": categories,
            "annotations": self._annotations,
        }
        write_file(self._path, json.dumps(content) + "\n")
        # Datumaro reads no annotations without a folder for the images, which may be empty.
        (self._path.parents[1] / "images" / "default").mkdir(parents=True, exist_ok=True)


class VocDataset:
    """A data set in PASCAL VOC's layout with CVAT's label map.

    labelmap.txt                          lines NAME:RED,GREEN,BLUE::
    SegmentationClass/NAME.png            as in `masks`
    ImageSets/Segmentation/default.txt    one NAME a line

    Args:
      root: pathlib.Path of the output folder.
      class_names: the C names.
      mask_values: the number of each class in mask files; () numbers them 1..C.

    Raises:
      UserError: if a label map can't hold one of the names.
    """

    def __init__(self, root, class_names, mask_values):
        self._root, self._names = root, []
        self._numbers = file_numbers(mask_values)
        self._label_map = label_map(class_names, mask_values)

    def add(self, name, prediction):
        """Adds a `rml_jax.inference.predictor.Prediction`."""
        mask = palette_png(self._numbers[prediction.mask])
        write_file(self._root / "SegmentationClass" / f"{name}.png", mask)
        self._names.append(name)

    def content(self):
        """See `CocoResults`."""
        return self._names

    def extend(self, content):
        """See `CocoResults`."""
        self._names += content

    def write(self):
        """Writes the label map and the list of names."""
        write_file(self._root / LABEL_MAP_FILE, self._label_map)
        write_list(self._root, "default", self._names)


def label_map(class_names, mask_values):
    """Returns the text of CVAT's labelmap.txt for masks in VOC's colours.

    Args:
      class_names: the C names.
      mask_values: the number of each class in mask files; () numbers them 1..C.

    Raises:
      UserError: if a label map can't hold one of the names.
    """
    wrong = [name for name in class_names if ":" in name or name.startswith("#") or not name.isprintable()]
    if wrong:
        raise UserError(f"found the class {wrong[0]!r}, expected names without : and # for {LABEL_MAP_FILE}")
    colors = visualize.palette()[file_numbers(mask_values)[: len(class_names) + 1]].tolist()
    lines = [
        f"{name}:{','.join(map(str, color))}::"
        for name, color in zip(("background", *class_names), colors, strict=True)
    ]
    return "\n".join(["# label:color_rgb:parts:actions", *lines]) + "\n"


def write_list(root, split, names):
    """Writes names, sorted, one a line, to VOC's ImageSets/Segmentation/SPLIT.txt below a folder."""
    text = "".join(f"{name}\n" for name in sorted(names))
    # Names that are not UTF-8 stay as they are on the disk.
    write_file(root / "ImageSets" / "Segmentation" / f"{split}.txt", text.encode("utf-8", "surrogateescape"))


def class_categories(config, class_names):
    """Returns the CocoCategories of a run's classes: with their ids in its data, else the numbers of its masks."""
    ids = tuple(config.data.category_ids)
    if not ids and config.data.source == "coco" and class_names == CLASS_NAMES:
        ids = COCO_IDS  # a run of version 0.1
    if not ids:
        ids = tuple(file_numbers(config.data.mask_values)[1 : len(class_names) + 1].tolist())
    return CocoCategories(class_names, ids)


def _binary_masks(mask):
    """Yields the number of each class in a mask and its pixels, uint8 [H, W] in Fortran order."""
    for number in np.flatnonzero(np.bincount(mask.ravel(), minlength=256)[1:]) + 1:
        yield int(number), np.asfortranarray(mask == number, dtype=np.uint8)


def _run_lengths(binary):
    """Run lengths of a uint8 [H, W] down the columns, zeros first, as COCO's uncompressed format has them."""
    flat = binary.ravel(order="F")
    starts = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff(np.concatenate([[0], starts, [flat.size]])).tolist()
    return [0, *lengths] if flat[0] else lengths
