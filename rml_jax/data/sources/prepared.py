"""Random access to the array_record files that `rml-jax prepare` writes."""

import json
from pathlib import Path

import numpy as np

from rml_jax.data.fingerprint import unpack_items
from rml_jax.data.images import decode_image
from rml_jax.data.masks import decode_mask
from rml_jax.data.sources.coco_classes import CLASS_NAMES, COCO_IDS
from rml_jax.data.tags import tag_key
from rml_jax.utils.errors import UserError

REPORT_FILE = "report.json"


def is_prepared(root):
    """Returns whether a folder is one that `rml-jax prepare` made."""
    return bool(root) and all(Path(root, name).is_file() for name in (REPORT_FILE, "dataset_info.json"))


def read_report(folder):
    """Reads report.json in a folder of prepared data.

    Raises:
      UserError: if there is none.
    """
    path = Path(folder, REPORT_FILE)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}, expected what `rml-jax prepare` writes") from error


def stored_category_ids(root, class_names):
    """Returns the `category_id` of classes in the annotation files that data were prepared from; () if unknown."""
    report = read_report(root)
    ids = report.get("category_ids")
    if ids is None and tuple(report["class_names"]) == CLASS_NAMES:
        ids = COCO_IDS  # prepared by version 0.1
    by_key = dict(zip(map(tag_key, report["class_names"]), ids or (), strict=False))
    found = tuple(by_key.get(tag_key(name)) for name in class_names)
    return () if None in found else found


class PreparedData:
    """Random-access source over one split of prepared data, with the items of the source it was prepared from.

    Args:
      root: the folder with report.json.
      split: name of a split in it.
      class_names: C of the prepared classes, in any order; () takes all, in the stored order. An image with another
        class is an error.
      with_masks: whether items carry their masks.

    Raises:
      UserError: by the constructor for incomplete data, an unknown split or class, or missing masks; by
        `source[i]` for an image with a class that isn't among `class_names`.
    """

    def __init__(self, root, split, class_names=(), with_masks=False):
        report = read_report(root)
        stored = report["class_names"]
        self.class_names = tuple(class_names) or tuple(stored)
        self.with_masks = with_masks
        self._root, self._split, self._stored, self._upright = str(root), split, stored, report["upright"]
        if split not in report["splits"]:
            raise UserError(f"{root} has no split {split!r}: expected one of {', '.join(report['splits'])}")
        facts = report["splits"][split]
        if with_masks and facts["without_mask"]:
            raise UserError(
                f"{root}: {facts['without_mask']} of {facts['images']} images of {split} have no mask, "
                "expected masks, which scoring needs (prepare folder --masks=FOLDER)"
            )
        places = {tag_key(name): number for number, name in enumerate(stored)}
        unknown = [name for name in self.class_names if tag_key(name) not in places]
        if unknown:
            raise UserError(f"{root} has no class {unknown[0]!r}: expected some of {', '.join(stored)}")
        # From the number of a stored class, from 0, to its place here; and, by place, its number in stored masks.
        stored_places = [places[tag_key(name)] for name in self.class_names]
        self._places = {number: place for place, number in enumerate(stored_places)}
        self._mask_values = tuple(number + 1 for number in stored_places)
        self._records = _open_records(root, split)

    def __len__(self):
        return len(self._records)

    def item_tags(self):
        """Returns the id of each image and the positions of its tags, ascending."""
        packed = read_report(self._root)["splits"][self._split].get("items")
        if packed is None:  # prepared by version 0.1
            items = [(record["id"].decode(), record["tags"].tolist()) for record in self._records]
        else:
            items = unpack_items(packed)
        places = self._places
        return [(name, tuple(sorted(places[n] for n in numbers if n in places))) for name, numbers in items]

    def __getitem__(self, index):
        record = self._records[index]
        name = self._name(record)
        item = {
            "id": record["id"].decode(),
            "image": decode_image(record["image"], name, self._upright),
            "tags": np.zeros(len(self.class_names), np.float32),
        }
        for number in record["tags"]:
            if number not in self._places:
                raise UserError(
                    f"{name}: found tag {self._stored[number]!r}, expected one of {', '.join(self.class_names)}"
                )
            item["tags"][self._places[number]] = 1.0
        if self.with_masks:
            item["mask"] = decode_mask(record["mask"], name, self._mask_values)
        return item

    def read_mask(self, index):
        """Returns an item's mask alone, uint8 [H, W]."""
        record = self._records[index]
        return decode_mask(record["mask"], self._name(record), self._mask_values)

    def _name(self, record):
        return f"{self._root} {self._split} {record['id'].decode()}"


def _open_records(root, split):
    import tensorflow_datasets as tfds  # Takes a second, and other data doesn't need it.

    as_stored = {"image": tfds.decode.SkipDecoding(), "mask": tfds.decode.SkipDecoding()}
    try:
        builder = tfds.builder_from_directory(root)
        missing = [path for path in builder.info.splits[split].filepaths if not path.is_file()]
        if missing:
            raise UserError(f"{missing[0]}: no such file, expected the data as it was prepared")
        return builder.as_data_source(split, decoders=as_stored)
    except (OSError, tfds.core.DatasetNotFoundError) as error:
        raise UserError(f"{root}: {error}, expected what `rml-jax prepare` writes") from error
