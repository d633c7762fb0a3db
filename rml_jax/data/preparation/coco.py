"""COCO 2014, or data in its layout: train2014 and val2014, images with at least one annotation."""

import functools

from rml_jax.data.images import decode_image
from rml_jax.data.preparation.base import Plan, Planned, PreparedBuilder
from rml_jax.data.preparation.inputs import Inputs
from rml_jax.data.sources.coco_annotations import parse_annotations
from rml_jax.data.sources.coco_categories import CocoCategories
from rml_jax.data.sources.coco_classes import CLASS_NAMES, COCO_IDS
from rml_jax.data.sources.coco_masks import draw_mask
from rml_jax.utils.errors import UserError

_HOST = "http://images.cocodataset.org"
ANNOTATIONS_URL = f"{_HOST}/annotations/annotations_trainval2014.zip"
_TRAIN, _VAL = "train2014", "val2014"


class Coco2014(PreparedBuilder):
    """Images as they are stored; masks drawn by `draw_mask`; tags of all objects, crowds included.

    The classes are the categories of the annotation file of train2014. An image of which an object has no outline has
    no mask.

    Args:
      manual_dir: folder with train2014.zip, val2014.zip and annotations_trainval2014.zip, or what is in them.
      downloads: whether to download missing archives.
      max_bad, options: see PreparedBuilder.
    """

    tags_from = "annotations"

    def __init__(self, *, manual_dir=".", downloads=False, **options):
        self._manual_dir, self._downloads = manual_dir, downloads
        self._train = self._parse(Inputs(manual_dir, None), _TRAIN)
        self._categories = self._train.categories if self._train else CocoCategories(CLASS_NAMES, COCO_IDS)
        self.class_names, self.category_ids = self._categories.names, self._categories.ids
        if self.class_names == CLASS_NAMES:
            self.OFFICIAL = {_TRAIN: 82081, _VAL: 40137}
        super().__init__(**options)

    def settings(self):
        if self.class_names == CLASS_NAMES and self.category_ids == COCO_IDS:
            return {}
        return {"class_names": list(self.class_names), "category_ids": list(self.category_ids)}

    def plan(self, dl_manager):
        inputs = Inputs(self._manual_dir, dl_manager if self._downloads else None)
        splits, notes, sources = {}, {}, []
        for split in (_TRAIN, _VAL):
            files = _find_annotations(inputs, split)
            if files is None:
                raise UserError(
                    f"{inputs.unpacked.where}: found no instances_{split}.json, in no folder or *annotations*.zip; "
                    "expected COCO's annotations (--download fetches them)"
                )
            annotations = self._train if split == _TRAIN and self._train else self._parse(inputs, split)
            folder = _find_images(inputs, split)
            splits[split] = [
                Planned(image.id, folder.path(image.file), functools.partial(_load, folder, image))
                for image in annotations.images
            ]
            listed = len(annotations.images) + annotations.without_objects
            notes[split] = "; ".join([f"{listed} in the annotation file", *annotations.notes])
            sources += [files.path(_file(split)), folder.where]
        return Plan(splits, notes, sources)

    def _parse(self, inputs, split):
        """Returns the CocoAnnotations of a split, or None if there are none."""
        files = _find_annotations(inputs, split)
        if files is None:
            return None
        name, expected = _file(split), getattr(self, "_categories", None)
        return parse_annotations(files.read(name), files.path(name), expected, with_masks=True)


def _load(folder, image):
    if image.error:
        raise UserError(image.error)
    path, data = folder.path(image.file), folder.read(image.file)
    size = image.size or decode_image(data, path).shape[:2]
    mask = None if image.objects is None else draw_mask(image.objects, size, path)
    return data, image.tags, mask


def _file(split):
    return f"instances_{split}.json"


def _find_annotations(inputs, split):
    """Finds the folder that holds the annotation file of a split, or None."""
    return inputs.find(lambda files: files.below(_file(split)), "*annotations*.zip", url=ANNOTATIONS_URL)


def _find_images(inputs, split):
    """Finds a split's folder of images."""
    found = inputs.find(lambda files: files.folder(split), f"{split}.zip", url=f"{_HOST}/zips/{split}.zip")
    if found is None:
        raise UserError(
            f"{inputs.unpacked.where}: found no folder {split} and no {split}.zip; expected COCO's images "
            "(--download fetches them)"
        )
    return found
