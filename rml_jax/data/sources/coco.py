"""COCO's folder layout, as its archives unpack it.

ROOT/train2014/COCO_train2014_000000000009.jpg      or whatever file_name says
ROOT/annotations/instances_train2014.json           polygons, run lengths, compressed run lengths
"""

import json
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from rml_jax.data.images import read_image
from rml_jax.data.sources.coco_classes import CLASS_NAMES, CLASS_NUMBERS
from rml_jax.data.sources.layout import DataLayout
from rml_jax.utils.errors import UserError

# In pixels. pycocotools takes memory by the length of an outline.
_LARGEST_COORDINATE = 100_000


class CocoFolder:
    """Random-access source over one split of COCO's images with at least one object of the 80 classes.

    `source[i]` is a dict with `id` (str, the file's name without suffix), `image` (uint8 [H, W, 3], pixels as
    stored), `tags` (float32 [80], crowds count) and, only where `with_masks` is set, `mask` (uint8 [H, W], 0
    background, 1..80 classes; COCO has no ignored pixels). Where objects overlap, the smaller one is on top, and all
    are above crowds; COCO defines no order. Without masks, no outlines are kept.

    Args:
      root: the folder that holds annotations.
      split: "train2014", "val2014" or another with both a folder and an annotation file.
      with_masks: whether items carry their masks.

    Raises:
      UserError: by the constructor if the annotation file or an image is missing, or the file isn't in COCO's format;
        by `source[i]` for an image that can't be decoded or has another size than the file says.
    """

    class_names = CLASS_NAMES

    def __init__(self, root, split, with_masks=False):
        self.with_masks = with_masks
        self._folder = str(Path(root, split))
        path = Path(root, "annotations", f"instances_{split}.json")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}, expected COCO's annotation file") from error
        self._images, self.without_objects = parse_annotations(data, path, with_masks)
        missing = [name for name, *_ in self._images if not Path(self._folder, name).is_file()]
        if missing:
            raise UserError(
                f"{path}: no image {Path(self._folder, missing[0])} "
                f"(missing for {len(missing)} of {len(self._images)} images)"
            )

    def __len__(self):
        return len(self._images)

    def __getitem__(self, index):
        name, size, numbers, objects = self._images[index]
        path = Path(self._folder, name)
        item = {"id": path.stem, "image": read_image(path)}
        if item["image"].shape[:2] != size:
            found, expected = (f"{width}x{height}" for height, width in (item["image"].shape[:2], size))
            raise UserError(f"{path}: found {found} pixels, expected {expected} as in the annotation file")
        item["tags"] = np.zeros(len(CLASS_NAMES), np.float32)
        item["tags"][[number - 1 for number in numbers]] = 1.0
        if self.with_masks:
            item["mask"] = draw_mask(objects, size, path)
        return item

    def item_tags(self):
        """Returns the id of each image and the positions of its tags, ascending."""
        return [(Path(name).stem, tuple(n - 1 for n in numbers)) for name, _, numbers, _ in self._images]


def draw_mask(objects, size, name):
    """Draws the class of each pixel.

    Args:
      objects: list of (class number, segmentation as in COCO's files, area, whether it is a crowd).
      size: (height, width).
      name: path of the image, for error messages.

    Returns:
      uint8 [H, W]: crowds first, then objects from the largest to the smallest, each over what was there.

    Raises:
      UserError: if an outline is in none of COCO's forms.
    """
    mask = np.zeros(size, np.uint8)
    for number, segmentation, _, _ in sorted(objects, key=lambda thing: (not thing[3], -thing[2])):
        try:
            mask[_pixels(segmentation, size)] = number
        # pycocotools raises bare Exception.
        except Exception as error:
            raise UserError(
                f"{name}: found an outline that can't be drawn ({error}), expected polygons or run lengths"
            ) from error
    return mask


def _pixels(segmentation, size):
    """bool [H, W] of an outline in any of COCO's three forms."""
    if isinstance(segmentation, dict):
        return _decode_run_lengths(segmentation, size)
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    for polygon in polygons:
        coordinates = np.asarray(polygon, np.float64)
        if coordinates.size < 6 or coordinates.size % 2:
            # Of 4 numbers pycocotools makes a box.
            raise ValueError(f"a polygon of {coordinates.size} numbers instead of 6, 8, ...")
        if not (np.abs(coordinates) <= _LARGEST_COORDINATE).all():  # NaN is not, either.
            raise ValueError(f"coordinates that are not within {_LARGEST_COORDINATE}")
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *size))).astype(bool)


def _decode_run_lengths(code, size):
    """bool [H, W] of run lengths, column by column, zeros first.

    pycocotools leaves the pixels behind the last run uninitialised.
    """
    counts = code["counts"]
    if isinstance(counts, str | bytes):
        counts = _parse_counts(counts.encode() if isinstance(counts, str) else counts)
    if "size" in code and list(code["size"]) != list(size):
        raise ValueError(f"run lengths for height and width {code['size']} instead of {list(size)}")
    if not all(isinstance(count, int) and count >= 0 for count in counts) or sum(counts) != size[0] * size[1]:
        raise ValueError(f"run lengths that are not whole numbers with the sum {size[0]} x {size[1]}")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size[::-1]).T


def _parse_counts(text):
    """The run lengths in COCO's compressed form, a list of int.

    Each number is written in groups of 5 bits from the lowest, one to a character from "0" to "o": bit 5 says that
    another follows, bit 4 of the last is the sign. From the fourth on, numbers are differences to the one two before.
    """
    counts, value, shift = [], 0, 0
    for byte in text:
        group = byte - 48
        if not 0 <= group < 64:
            raise ValueError(f"the character {chr(byte)!r} in compressed run lengths")
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("compressed run lengths that are cut off")
    return counts


def parse_annotations(data, path, with_masks):
    """Reads the images and objects of an annotation file.

    Args:
      data: the file's bytes.
      path: path of the file, for error messages.
      with_masks: whether to keep the outlines.

    Returns:
      List of (file name, (height, width), class numbers 1..80, objects for `draw_mask` or None) of the images with at
      least one object, and the number of those without.

    Raises:
      UserError: if the file isn't in COCO's format, or has no image with an object.
    """
    try:
        content = json.loads(data)
        things = {}
        for annotation in content["annotations"]:
            number = CLASS_NUMBERS[annotation["category_id"]]
            outline = (annotation["segmentation"], annotation["area"], bool(annotation["iscrowd"]))
            things.setdefault(annotation["image_id"], []).append((number, *outline))
        images = [
            (image["file_name"], (image["height"], image["width"]), things[image["id"]])
            for image in content["images"]
            if image["id"] in things
        ]
        without_objects = len(content["images"]) - len(images)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: found {error!r}, expected COCO's instance annotations") from error
    if not images:
        raise UserError(f"{path}: found no image with an object")
    numbers = [sorted({thing[0] for thing in objects}) for _, _, objects in images]
    kept = [
        (name, size, classes, objects if with_masks else None)
        for (name, size, objects), classes in zip(images, numbers, strict=True)
    ]
    return kept, without_objects


def _make(data_config, split, with_masks):
    if not data_config.root:
        raise UserError(
            "config.data.root is empty: expected the folder that holds annotations/ and train2014/"
        )
    return CocoFolder(data_config.root, split, with_masks)


LAYOUT = DataLayout(
    make=_make,
    class_names=CLASS_NAMES,
    licence="COCO's annotations are under CC BY 4.0; its images come from Flickr under several licences, some of "
    "them non-commercial, listed in its annotation files.",
)
