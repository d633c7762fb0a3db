"""The one registration that a data layout consists of."""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class DataLayout:
    """How the images, tags and masks of a kind of data set are found. `SOURCES` holds them by name.

    Functions get `data_config`, the `data` part of a run's config.

    Attributes:
      make: function (data_config, split, with_masks) -> source. A source has `class_names` (C names without
        background), `len(source)` and `source[i]`, a dict with `id` (str), `image` (uint8 [H, W, 3]), `tags` (float32
        [C], 0 or 1) and, only where `with_masks` is set, `mask` (uint8 [H, W], 0 background, 1..C classes, 255
        ignore). Both raise UserError for what is wrong with the data. Several threads read one source at once, and
        worker processes get a pickled copy.
      class_names: the classes that the layout fixes; () where `data_config.class_names` gives them.
      find_classes: function data_config -> class names, used where `data_config.class_names` is empty; None where
        the config must name them.
      find_category_ids: function data_config -> the `category_id` of each class in the data set's own annotation
        files, used where `data_config.category_ids` is empty; None where there are none.
      has_masks: function (data_config, split) -> whether there are masks to score the split by.
      licence: terms of the training data, for model cards. Markdown.
    """

    make: Callable[[Any, str, bool], Any]
    class_names: tuple[str, ...] = ()
    find_classes: Callable[[Any], tuple[str, ...]] | None = None
    find_category_ids: Callable[[Any], tuple[int, ...]] | None = None
    has_masks: Callable[[Any, str], bool] = lambda data_config, split: True
    licence: str = "None stated."
