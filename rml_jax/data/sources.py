"""The data sources by the name they have in `config.data.source`."""

from rml_jax.data.digits import DigitScenes
from rml_jax.data.voc import IMAGE_FOLDER, VocFolder
from rml_jax.errors import UserError


def make_source(data_config, split, *, with_masks):
    """The random-access source of one split.

    Args:
      data_config: the `data` part of a config (any object with these attributes): `source`, "digits" or
        "voc"; for "voc" `root`, `tags` (tag file or ""), `class_names` and `mask_values`; for "digits"
        `train_split`, `num_train`, `num_val`, `seed` and `scene` (keyword arguments of `DigitScenes`).
      split: name of the split, usually `data_config.train_split` or `data_config.val_split`.
      with_masks: whether items carry `mask`; for evaluation only.

    Returns:
      An object with `class_names` (C names without background), `len(source)` and `source[i]`, a dict with
      `id` (str), `image` (uint8 [H, W, 3]), `tags` (float32 [C]) and, where `with_masks` is set, `mask`
      (uint8 [H, W], 0 background, 1..C classes, 255 ignore).

    Raises:
      UserError: for an unknown `source`, an empty `root`, and whatever the source itself finds wrong.
    """
    if data_config.source not in SOURCES:
        raise UserError(f"config.data.source is {data_config.source!r}: expected one of {', '.join(SOURCES)}")
    return SOURCES[data_config.source](data_config, split, with_masks)


def _make_digits(data_config, split, with_masks):
    num_scenes = data_config.num_train if split == data_config.train_split else data_config.num_val
    return DigitScenes(split, num_scenes, data_config.seed, with_masks=with_masks, **data_config.scene)


def _make_voc(data_config, split, with_masks):
    if not data_config.root:
        raise UserError(f"config.data.root is empty: expected the folder that holds {IMAGE_FOLDER}/")
    return VocFolder(
        data_config.root,
        split,
        data_config.class_names,
        data_config.mask_values,
        tags_file=data_config.tags,
        with_masks=with_masks,
    )


SOURCES = {"digits": _make_digits, "voc": _make_voc}
