"""The data sources by the name they have in `config.data.source`."""

import sys

from rml_jax.data.masks import check_all_classes_occur
from rml_jax.data.sources.coco import CocoFolder
from rml_jax.data.sources.digits import DigitScenes
from rml_jax.data.sources.folder import PhotoFolder, folder_classes
from rml_jax.data.sources.prepared import PreparedData, is_prepared, read_report
from rml_jax.data.sources.voc import IMAGE_FOLDER, VocFolder
from rml_jax.utils.errors import UserError


def make_source(data_config, split, *, with_masks):
    """The random-access source of one split.

    Args:
      data_config: the `data` part of a config (any object with these attributes): `source`, "digits", "voc", "coco"
        or "folder"; `skip_bad`; for prepared data (`rml-jax prepare`) `root` and `class_names`; for "coco"
        `root`; for "voc" `root`, `tags` (tag file or ""), `class_names`, `mask_values`, `mask_ignore` and
        `allow_absent`; for "folder" these and `masks`,
        `val_list`, `val_fraction` and `seed`; for "digits" `train_split`, `num_train`, `num_val`, `seed` and
        `scene` (keyword arguments of `DigitScenes`).
      split: name of the split, usually `data_config.train_split` or `data_config.val_split`.
      with_masks: whether items carry `mask`; for evaluation only.

    Returns:
      An object with `class_names` (C names without background), `len(source)` and `source[i]`, a dict with
      `id` (str), `image` (uint8 [H, W, 3]), `tags` (float32 [C]) and, where `with_masks` is set, `mask`
      (uint8 [H, W], 0 background, 1..C classes, 255 ignore). Sources whose masks are files also have `read_mask(i)`.

    Raises:
      UserError: for an unknown `source`, an empty `root`, and whatever the source itself finds wrong.
    """
    if data_config.source not in SOURCES:
        raise UserError(f"config.data.source is {data_config.source!r}: expected one of {', '.join(SOURCES)}")
    if is_prepared(data_config.root):
        _check_unused(data_config)
        return PreparedData(data_config.root, split, data_config.class_names, with_masks)
    source = SOURCES[data_config.source](data_config, split, with_masks)
    return SkipBad(source) if data_config.skip_bad and not with_masks else source


def check_masks(source, data_config):
    """Checks the masks of a source as a whole before they are used (`rml_jax.data.masks.check_all_classes_occur`).

    Args:
      source: what `make_source` returns. The masks of digits and of COCO's annotations are drawn by class and pass.
      data_config: see `make_source`.

    Raises:
      UserError: if a class occurs in no mask, unless `allow_absent` is set.
    """
    if not hasattr(source, "read_mask"):
        return
    check_all_classes_occur(
        source.read_mask,
        len(source),
        data_config.masks or data_config.root,
        source.class_names,
        data_config.mask_values or tuple(range(1, len(source.class_names) + 1)),
        data_config.mask_ignore,
        data_config.allow_absent,
    )


class SkipBad:
    """A training source that gives the next good item in the place of one that can't be read.

    So the number of items, and with it the order of all others, stays the same. Each bad item is reported once per
    process on standard error, with a count.

    Args:
      source: random-access source whose `source[i]` raises UserError for a bad file.
    """

    def __init__(self, source):
        self.class_names = source.class_names
        self._source = source
        self._bad = set()

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        for place in range(index, index + len(self)):
            try:
                return self._source[place % len(self)]
            except UserError as error:
                reason = error
                if place % len(self) not in self._bad:
                    self._bad.add(place % len(self))
                    print(f"skipped, {len(self._bad)} so far: {error}", file=sys.stderr)
        raise reason


def with_class_names(config):
    """A config whose class list is known: a folder's own where `config.data.class_names` is empty.

    Args:
      config: ConfigDict of a run.

    Returns:
      The config itself, or a copy with the names that occur in the folder's tags.

    Raises:
      UserError: if the folder or its tags can't be read.
    """
    data = config.data
    if data.source != "folder" or data.class_names:
        return config
    config = config.copy_and_resolve_references()
    config.data.class_names = (
        tuple(read_report(data.root)["class_names"])
        if is_prepared(data.root)
        else folder_classes(data.root, data.tags, data.masks)
    )
    return config


def _check_unused(data_config):
    """Raises UserError for settings that were fixed when the data was prepared."""
    for key in ("tags", "masks", "val_list"):
        if data_config.get(key):
            raise UserError(
                f"config.data.{key} is {data_config.get(key)!r}: expected nothing, as {data_config.root} is prepared "
                "data, which has its own"
            )


def _make_digits(data_config, split, with_masks):
    num_scenes = data_config.num_train if split == data_config.train_split else data_config.num_val
    return DigitScenes(split, num_scenes, data_config.seed, with_masks=with_masks, **data_config.scene)


def _make_voc(data_config, split, with_masks):
    if not data_config.root:
        raise UserError(f"config.data.root is empty: expected the folder that holds {IMAGE_FOLDER}/")
    source = VocFolder(
        data_config.root,
        split,
        data_config.class_names,
        data_config.mask_values,
        data_config.mask_ignore,
        tags_file=data_config.tags,
        with_masks=with_masks,
    )
    if not with_masks and not data_config.tags:
        check_masks(source, data_config)  # All tags come from the masks.
    return source


def _make_coco(data_config, split, with_masks):
    if not data_config.root:
        raise UserError(
            "config.data.root is empty: expected the folder that holds annotations/ and train2014/"
        )
    return CocoFolder(data_config.root, split, with_masks)


def _make_folder(data_config, split, with_masks):
    splits = (data_config.train_split, data_config.val_split)
    if split not in splits:
        raise UserError(f"folder has no split {split!r}: expected one of {', '.join(splits)}")
    return PhotoFolder(
        data_config.root,
        split == data_config.train_split,
        data_config.class_names,
        tags_file=data_config.tags,
        mask_folder=data_config.masks,
        mask_values=data_config.mask_values,
        mask_ignore=data_config.mask_ignore,
        val_list=data_config.val_list,
        val_fraction=data_config.val_fraction,
        seed=data_config.seed,
        with_masks=with_masks,
    )


SOURCES = {"digits": _make_digits, "voc": _make_voc, "coco": _make_coco, "folder": _make_folder}
