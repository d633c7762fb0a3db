"""The checks of a configuration that types alone don't make: names and ranges."""

import math

from rml_jax.data.sources import SOURCES
from rml_jax.data.sources.coco_classes import CLASS_NAMES as COCO_NAMES
from rml_jax.data.sources.digits import CLASS_NAMES
from rml_jax.losses import LOSS_TERMS, READINGS
from rml_jax.models.mit import VARIANTS, MiTConfig
from rml_jax.models.rml import POOLINGS
from rml_jax.ops.cam import scaled_size
from rml_jax.ops.crf import SETTINGS
from rml_jax.stages.stages import PROTOCOLS, background_key, parse_stage
from rml_jax.utils.errors import UserError

FREEZE_NORMS = ("pretrained", "always", "never")
DTYPES = ("float32", "bfloat16")

# Keys whose value is at least 1, and at least 0.
_POSITIVE = (
    "train.steps",
    "train.batch_size",
    "train.grad_accum_steps",
    "train.max_skipped",
    "train.crop_size",
    "checkpoint.every",
    "checkpoint.keep",
    "log.every",
    "model.context_channels",
    "pseudo_label.slots",
    "eval.batch_size",
)
_NOT_NEGATIVE = (
    "data.seed",
    "data.workers",
    "data.scene.background_brightness",
    "affine.rotation",
    "affine.translation",
    "pseudo_label.iterations",
    "loss.ciml",
    "loss.mfml",
    "loss.apml",
    "loss.alpha",
    "loss.affinity",
    "loss.beta1",
    "loss.beta2",
    "loss.self_training",
    "loss.radius",
    "loss.start_step",
    "optimizer.backbone_lr",
    "optimizer.head_lr",
    "optimizer.weight_decay",
    "optimizer.warmup_steps",
    "checkpoint.keep_best",
    "log.pictures_every",
    "eval.pictures",
    "eval.sweep.images",
)


def check_config(config):
    """Checks what types don't: names and ranges.

    Args:
      config: ConfigDict of `default_config`'s keys.

    Raises:
      UserError: naming the first key that is wrong, what it holds and what was expected.
    """
    _check_choice(config, "data.source", SOURCES)
    _check_choice(config, "model.variant", VARIANTS)
    _check_choice(config, "model.pooling", POOLINGS)
    _check_choice(config, "model.dtype", DTYPES)
    _check_choice(config, "optimizer.freeze_norms", FREEZE_NORMS)
    _check_choice(config, "model.fused_stages", (1, 2, 3, 4))
    _check_choice(config, "checkpoint.best_metric", LOSS_TERMS)
    for name, choices in READINGS.items():
        _check_choice(config, f"loss.ciml_{name}", choices)
    for key in _POSITIVE:
        _check(config, key, lambda value: value >= 1, "at least 1")
    for key in _NOT_NEGATIVE:
        _check(config, key, lambda value: value >= 0, "at least 0")
    _check(config, "train.seed", lambda value: 0 <= value < 2**32, "0 to 2**32 - 1")
    _check_class_names(config)
    _check(config, "data.scene.digits", _is_int_range, "(least, greatest) with 1 <= least <= greatest")
    _check(config, "data.scene.digit_size", _is_int_range, "(least, greatest) with 1 <= least <= greatest")
    _check(config, "augment.scale", _is_range, "(low, high) with 0 < low <= high")
    _check(config, "affine.scale", _is_range, "(low, high) with 0 < low <= high")
    _check(config, "data.mask_ignore", lambda value: -1 <= value <= 255, "0 to 255, or -1 for none")
    _check(config, "data.val_fraction", lambda value: 0 <= value < 1, "a share below 1")
    _check(config, "affine.flip", lambda value: 0 <= value <= 1, "a probability")
    _check(config, "model.drop_path", lambda value: 0 <= value < 1, "a probability below 1")
    _check(
        config, "cam.scales", lambda value: value and all(map(_is_scale, value)), "at least one scale above 0"
    )
    _check(
        config,
        "pseudo_label.low",
        lambda value: value <= config.pseudo_label.high,
        f"at most pseudo_label.high = {config.pseudo_label.high}",
    )
    _check(
        config,
        "pseudo_label.dilations",
        lambda value: value and all(map(_is_positive_int, value)),
        "at least one whole number of pixels, each at least 1",
    )
    _check(
        config,
        "eval.stages",
        _are_stages,
        "different stages: cam, or some of affinity, par, crf joined by + in this order",
    )
    _check(
        config,
        "eval.protocols",
        lambda value: value and set(value) <= set(PROTOCOLS) and len(set(value)) == len(value),
        f"some of {', '.join(PROTOCOLS)}",
    )
    _check_choice(config, "eval.crf", SETTINGS)
    _check(
        config,
        "eval.checkpoint",
        lambda value: value in ("newest", "best") or value.isdecimal(),
        "newest, best (by checkpoint.best_metric) or a step in digits",
    )
    for stage in config.eval.stages:
        key = f"eval.background.{background_key(stage)}"
        _check(config, key, lambda value: value >= 0, "the background's score in that stage, at least 0")
    _check(
        config,
        "eval.sweep.grid",
        lambda value: value and all(score >= 0 for score in value),
        "at least one background score, each at least 0",
    )
    _check(
        config,
        "eval.canvases",
        lambda value: value and all(len(size) == 2 and all(map(_is_positive_int, size)) for size in value),
        "at least one (height, width)",
    )
    _check_sides(config)


def _are_stages(names):
    try:
        return names and len({parse_stage(name) for name in names}) == len(names)
    except (AttributeError, ValueError):
        return False


def _is_range(value):
    return len(value) == 2 and all(map(_is_scale, value)) and value[0] <= value[1]


def _is_scale(value):
    return 0 < value < math.inf


def _is_positive_int(value):
    return isinstance(value, int) and value >= 1


def _is_int_range(value):
    return _is_range(value) and all(map(_is_positive_int, value))


def _check_class_names(config):
    key = "data.class_names"
    if config.data.source == "digits":
        _check(config, key, lambda names: names == CLASS_NAMES, f"{CLASS_NAMES}, the classes of digits")
    if config.data.source == "folder" and config.data.class_names == ():
        return  # `with_class_names` takes them from the tags.
    if config.data.source == "coco":
        _check(
            config,
            key,
            lambda names: names == COCO_NAMES,
            "the 80 classes of rml_jax.data.sources.coco_classes",
        )
    _check(
        config,
        key,
        lambda names: (
            names
            and all(isinstance(name, str) for name in names)
            and len({"background", *names}) == len(names) + 1
        ),
        "at least one name, each only once, and none of them background",
    )


def _check_sides(config):
    """Checks that every pass of the multi-scale CAM is large enough for the network's spatial reductions."""
    backbone = MiTConfig.variant(config.model.variant)
    smallest = backbone.smallest_side

    def is_enough(size):
        return all(min(scaled_size(size, s, backbone.stride)) >= smallest for s in (1.0, *config.cam.scales))

    expected = (
        f"sides of {smallest} pixels or more at each of cam.scales, for model.variant {config.model.variant}"
    )
    _check(config, "eval.canvases", lambda canvases: all(map(is_enough, canvases)), expected)
    _check(config, "train.crop_size", lambda side: is_enough((side, side)), expected)


def _check_choice(config, key, choices):
    _check(config, key, lambda value: value in choices, f"one of {', '.join(map(str, choices))}")


def _check(config, key, is_good, expected):
    value = config
    for part in key.split("."):
        value = value.get(part)
    try:
        good = is_good(value)
    except TypeError:
        good = False  # ConfigDict does not check types inside of tuples.
    if not good:
        raise UserError(f"config.{key} is {value!r}: expected {expected}")
