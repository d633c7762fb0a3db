"""COCO 2014: train2014 and val2014, images with at least one object of the 80 classes."""

import functools
from pathlib import Path

from rml_jax.data.preparation.base import Plan, Planned, PreparedBuilder
from rml_jax.data.preparation.inputs import Inputs
from rml_jax.data.sources.coco import draw_mask, parse_annotations
from rml_jax.data.sources.coco_classes import CLASS_NAMES
from rml_jax.utils.errors import UserError

_HOST = "http://images.cocodataset.org"
ANNOTATIONS_URL = f"{_HOST}/annotations/annotations_trainval2014.zip"


class Coco2014(PreparedBuilder):
    """Images as they are stored; masks drawn by `draw_mask`; tags of all objects, crowds included.

    Args:
      manual_dir: folder with train2014.zip, val2014.zip and annotations_trainval2014.zip, or what is in them.
      downloads: whether to download missing archives.
      max_bad, options: see PreparedBuilder.
    """

    OFFICIAL = {"train2014": 82081, "val2014": 40137}  # noqa: RUF012

    class_names = CLASS_NAMES
    tags_from = "annotations"

    def __init__(self, *, manual_dir=".", downloads=False, **options):
        self._manual_dir, self._downloads = manual_dir, downloads
        super().__init__(**options)

    def settings(self):
        return {}

    def plan(self, dl_manager):
        inputs = Inputs(self._manual_dir, dl_manager if self._downloads else None)
        splits, notes, sources = {}, {}, []
        for split in self.OFFICIAL:
            name = f"instances_{split}.json"
            files = _find_annotations(inputs, name)
            images, without = parse_annotations(files.read(name), files.path(name), with_masks=True)
            folder = _find_images(inputs, split)
            splits[split] = [
                Planned(Path(image[0]).stem, folder.path(image[0]), functools.partial(_load, folder, *image))
                for image in images
            ]
            notes[split] = (
                f"{len(images) + without} in the annotation file, {without} without any of the 80 classes"
            )
            sources += [files.path(name), folder.where]
        return Plan(splits, notes, sources)


def _load(folder, file, size, numbers, objects):
    path = folder.path(file)
    return folder.read(file), tuple(number - 1 for number in numbers), draw_mask(objects, size, path)


def _find_annotations(inputs, name):
    """Finds the folder that holds an annotation file."""
    found = inputs.find(lambda files: files.below(name), "*annotations*.zip", url=ANNOTATIONS_URL)
    if found is None:
        raise UserError(
            f"{inputs.unpacked.where}: found no {name}, in no folder or *annotations*.zip; expected COCO's "
            "annotations (--download fetches them)"
        )
    return found


def _find_images(inputs, split):
    """Finds a split's folder of images."""
    found = inputs.find(lambda files: files.folder(split), f"{split}.zip", url=f"{_HOST}/zips/{split}.zip")
    if found is None:
        raise UserError(
            f"{inputs.unpacked.where}: found no folder {split} and no {split}.zip; expected COCO's images "
            "(--download fetches them)"
        )
    return found
