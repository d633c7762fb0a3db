"""Data sets in COCO's format: COCO itself, and what annotation tools export.

Classes are the categories of the annotation file. `coco_files.py` says where it and the images are.
"""

import functools
import hashlib

import numpy as np

from rml_jax.data.images import read_bytes, read_image
from rml_jax.data.sources.coco_annotations import load_json, parse_annotations
from rml_jax.data.sources.coco_categories import CocoCategories, choose_categories, read_categories
from rml_jax.data.sources.coco_files import find_annotations, find_images
from rml_jax.data.sources.coco_masks import draw_mask, has_outline
from rml_jax.data.sources.duplicates import draw_groups, first_copies
from rml_jax.data.sources.layout import DataLayout
from rml_jax.utils.errors import UserError


class CocoFolder:
    """Random-access source over one split's images with at least one annotation.

    `source[i]` is a dict with `id` (str, see `CocoImage`), `image` (uint8 [H, W, 3], pixels as stored), `tags`
    (float32 [C], crowds count) and, only where `with_masks` is set, `mask` (uint8 [H, W], 0 background, 1..C classes;
    COCO has no ignored pixels). Where objects overlap, the smaller one is on top, and all are above crowds; COCO
    defines no order. Without masks, outlines are ignored and may be missing.

    Args:
      root: the folder of the data.
      split: "train2014", "train" or another.
      with_masks: whether items carry their masks. Every object then needs an outline.
      categories: CocoCategories that the annotation file must agree with; None takes those of the file.
      part: (is_training, val_fraction, seed), which part to draw where one file is of the whole data set; None takes
        all of it. Identical images are never in both parts.

    Raises:
      UserError: by the constructor if the annotation file or an image is missing, the file isn't in COCO's format or
        has other categories, or an object has no outline for its mask; by `source[i]` for an image whose entry or
        annotations are wrong, that can't be decoded or has another size than the file says.
    """

    def __init__(self, root, split, with_masks=False, categories=None, part=None):
        self.with_masks = with_masks
        path, is_whole = find_annotations(root, split)
        annotations = parse_annotations(read_bytes(path), path, categories, with_masks)
        self.class_names, self.category_ids = annotations.categories.names, annotations.categories.ids
        self.without_objects, self.notes = annotations.without_objects, annotations.notes
        sound = [image for image in annotations.images if not image.error]
        files = find_images(root, split, path, is_whole, [image.file for image in sound])
        self._paths = {image.id: file for image, file in zip(sound, files, strict=True)}
        self._images = annotations.images
        if is_whole and part:
            chosen = _draw([image.id for image in self._images], self._paths, *part)
            self._images = [image for image in self._images if image.id in chosen]
        if not self._images:
            raise UserError(
                f"{path}: no image is left for {split}, of {len(annotations.images)} (config.data.val_fraction)"
            )
        if with_masks:
            self._check_outlines(path)

    def __len__(self):
        return len(self._images)

    def __getitem__(self, index):
        image = self._images[index]
        if image.error:
            raise UserError(image.error)
        path = self._paths[image.id]
        item = {"id": image.id, "image": read_image(path)}
        size = item["image"].shape[:2]
        if image.size not in (None, size):
            found, expected = (f"{width}x{height}" for height, width in (size, image.size))
            raise UserError(f"{path}: found {found} pixels, expected {expected} as in the annotation file")
        item["tags"] = np.zeros(len(self.class_names), np.float32)
        item["tags"][list(image.tags)] = 1.0
        if self.with_masks:
            item["mask"] = draw_mask(image.objects, size, path)
        return item

    def item_tags(self):
        """Returns the id of each image and the positions of its tags, ascending; None for a wrong annotation."""
        return [(image.id, None if image.error else image.tags) for image in self._images]

    def _check_outlines(self, path):
        without = [image for image in self._images if image.objects is None and not image.error]
        if without:
            raise UserError(
                f"{path}: found no outline of an object in {without[0].file!r} (so for {len(without)} of "
                f"{len(self._images)} images), expected polygons or run lengths, of which masks are drawn "
                "(training needs none with --config.log.pictures_every=0)"
            )


def _draw(ids, paths, is_training, val_fraction, seed):
    """Returns the set of the ids of one part. Of identical images, all are in the part of the first."""
    first = {name: name for name in ids} | first_copies(paths)
    # By hash rather than by a shuffle: when images are added later, nearly all others stay in their part.
    order = sorted(ids, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    count = max(1, round(val_fraction * len(ids))) if val_fraction else 0
    drawn = draw_groups([first[name] for name in order], count)
    return {name for name in ids if (first[name] in drawn) != is_training}


def find_categories(data_config):
    """Returns the CocoCategories of a data set.

    Args:
      data_config: the `data` part of a config. Its `class_names` and `category_ids` are used where they are set, else
        the categories in the annotation file of the training split or, if there is none, of the validation split.

    Raises:
      UserError: if no annotation file is found, its categories are malformed, or it lacks one of the class names.
    """
    names, ids = tuple(data_config.class_names), tuple(data_config.category_ids)
    if names and ids:
        if len(names) != len(ids):
            raise UserError(f"config.data.category_ids is {ids}: expected {len(names)}, one per class")
        return CocoCategories(names, ids)
    _check_root(data_config)
    try:
        path, _ = find_annotations(data_config.root, data_config.train_split)
    except UserError:
        try:
            path, _ = find_annotations(data_config.root, data_config.val_split)
        except UserError:
            path = None
        if path is None:
            raise
    categories = _read_file_categories(path, path.stat().st_mtime_ns)
    return choose_categories(categories, names, path) if names else categories


@functools.lru_cache(maxsize=2)
def _read_file_categories(path, changed):
    """CocoCategories of a file that last changed at some time. Cached, as COCO's files take seconds to read."""
    return read_categories(load_json(read_bytes(path), path), path)[0]


def _check_root(data_config):
    if not data_config.root:
        raise UserError(
            "config.data.root is empty: expected the folder of images and annotations in COCO's format"
        )


def _make(data_config, split, with_masks):
    _check_root(data_config)
    is_training = split == data_config.train_split
    if not is_training and split != data_config.val_split and find_annotations(data_config.root, split)[1]:
        raise UserError(
            f"{data_config.root} has no split {split!r}: expected {data_config.train_split} or "
            f"{data_config.val_split}"
        )
    part = (is_training, data_config.val_fraction, data_config.seed)
    return CocoFolder(data_config.root, split, with_masks, find_categories(data_config), part)


def _has_masks(data_config, split):
    """Returns whether an object of a split has an outline."""
    _check_root(data_config)
    path, _ = find_annotations(data_config.root, split)
    return _has_outlines(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _has_outlines(path, changed):
    entries = load_json(read_bytes(path), path)["annotations"]
    return any(isinstance(entry, dict) and has_outline(entry.get("segmentation")) for entry in entries)


LAYOUT = DataLayout(
    make=_make,
    has_masks=_has_masks,
    find_classes=lambda data_config: find_categories(data_config).names,
    find_category_ids=lambda data_config: find_categories(data_config).ids,
    licence="In COCO's format. If these are COCO's own images: the annotations are under CC BY 4.0; the images come "
    "from Flickr under several licences, some of them non-commercial, listed in the annotation files.",
)
