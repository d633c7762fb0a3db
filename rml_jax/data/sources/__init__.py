"""The data layouts by the name they have in `config.data.source`.

To add one, put a `DataLayout` into `SOURCES`.
"""

import sys

from rml_jax.data.sources import coco, digits, folder, voc
from rml_jax.data.sources.layout import DataLayout
from rml_jax.data.sources.prepared import PreparedData, is_prepared, read_report, stored_category_ids
from rml_jax.utils.errors import UserError

SOURCES = {"digits": digits.LAYOUT, "voc": voc.LAYOUT, "coco": coco.LAYOUT, "folder": folder.LAYOUT}


def find_layout(data_config):
    """Returns the DataLayout that `data_config.source` names.

    Raises:
      UserError: if there is none of that name.
    """
    if data_config.source not in SOURCES:
        raise UserError(f"config.data.source is {data_config.source!r}: expected one of {', '.join(SOURCES)}")
    return SOURCES[data_config.source]


def make_source(data_config, split, *, with_masks):
    """Opens one split of a data set.

    Args:
      data_config: the `data` part of a config. Prepared data (`rml-jax prepare`) is recognised by `root`.
      split: name of the split, usually `data_config.train_split` or `data_config.val_split`.
      with_masks: whether items carry `mask`. For evaluation only.

    Returns:
      A random-access source (`DataLayout.make`).

    Raises:
      UserError: for an unknown `source`, an empty `root`, or data that is missing or malformed.
    """
    layout = find_layout(data_config)
    if is_prepared(data_config.root):
        _check_unused(data_config)
        return PreparedData(data_config.root, split, data_config.class_names, with_masks)
    source = layout.make(data_config, split, with_masks)
    return SkipBad(source) if data_config.skip_bad and not with_masks else source


class SkipBad:
    """A training source that replaces an item that can't be read by the next one that can.

    The number of items and the order of all others stay the same. Each bad item is reported once per process on
    standard error, with a count.

    Args:
      source: random-access source whose `source[i]` raises UserError for a bad file.
    """

    def __init__(self, source):
        self.class_names = source.class_names
        self.source = source
        self._bad = set()

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        for place in range(index, index + len(self)):
            try:
                return self.source[place % len(self)]
            except UserError as error:
                reason = error
                if place % len(self) not in self._bad:
                    self._bad.add(place % len(self))
                    print(f"skipped, {len(self._bad)} so far: {error}", file=sys.stderr)
        raise reason


def with_class_names(config):
    """Fills in the class list and the categories' ids where they are empty and the data itself has them.

    Args:
      config: ConfigDict of a run.

    Returns:
      The config itself, or a copy with `data.class_names` and `data.category_ids` as in the data.

    Raises:
      UserError: for an unknown `config.data.source`, or if the data or its tags can't be read.
    """
    layout = find_layout(config.data)
    needs_names = layout.find_classes is not None and not config.data.class_names
    needs_ids = layout.find_category_ids is not None and not config.data.category_ids
    if not needs_names and not needs_ids:
        return config
    config = config.copy_and_resolve_references()
    data = config.data
    if needs_names:
        data.class_names = tuple(
            read_report(data.root)["class_names"] if is_prepared(data.root) else layout.find_classes(data)
        )
    if needs_ids:
        is_stored = is_prepared(data.root)
        data.category_ids = (
            stored_category_ids(data.root, data.class_names) if is_stored else layout.find_category_ids(data)
        )
    return config


def has_masks(data_config, split=None):
    """Returns whether there are masks to score by, as far as names tell.

    Args:
      data_config: the `data` part of a config.
      split: name of the split, by default `data_config.val_split`.

    Raises:
      UserError: for an unknown `source` or a damaged report of prepared data.
    """
    layout, split = find_layout(data_config), split or data_config.val_split
    if is_prepared(data_config.root):
        facts = read_report(data_config.root)["splits"].get(split)
        return facts is not None and facts["without_mask"] < facts["images"]
    return layout.has_masks(data_config, split)


def _check_unused(data_config):
    """Raises UserError for settings that were fixed when the data was prepared."""
    for key in ("tags", "masks", "val_list"):
        if data_config.get(key):
            raise UserError(
                f"config.data.{key} is {data_config.get(key)!r}: expected nothing, as {data_config.root} is prepared "
                "data, which has its own"
            )


__all__ = ["SOURCES", "DataLayout", "SkipBad", "find_layout", "has_masks", "make_source", "with_class_names"]
