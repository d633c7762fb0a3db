"""Checks of a configuration's names and ranges."""

import math

from rml_jax.data.sources import SOURCES
from rml_jax.data.tags import check_class_names
from rml_jax.losses import TERMS, loss_names
from rml_jax.models import BACKBONES, build
from rml_jax.models.mit import PADDINGS
from rml_jax.models.rml import POOLINGS
from rml_jax.ops.cam import scaled_size
from rml_jax.ops.crf import SETTINGS
from rml_jax.stages.registry import STAGES, background_key, parse_stage
from rml_jax.stages.runner import PROTOCOLS
from rml_jax.utils.errors import UserError

# Keys that take one of several values.
_CHOICES = {
    "data.source": SOURCES,
    "model.variant": BACKBONES,
    "model.padding": PADDINGS,
    "model.pooling": POOLINGS,
    "model.dtype": build.DTYPES,
    "cam.dtype": build.CAM_DTYPES,
    "optimizer.freeze_norms": ("pretrained", "always", "never"),
    "eval.crf": SETTINGS,
}

# Keys whose values are at least 1, and at least 0.
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
    "model.center_radius",
    "affine.rotation",
    "affine.translation",
    "pseudo_label.iterations",
    "loss.alpha",
    "loss.affinity",
    "loss.beta1",
    "loss.beta2",
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


_AT_LEAST_0 = (lambda value: value >= 0), "at least 0"
_INT_RANGE = _is_int_range, "(least, greatest) with 1 <= least <= greatest"
_RANGE = _is_range, "(low, high) with 0 < low <= high"

# Key -> (function that checks a value, what is expected).
_RULES = {
    **dict.fromkeys(_POSITIVE, (lambda value: value >= 1, "at least 1")),
    **dict.fromkeys(_NOT_NEGATIVE, _AT_LEAST_0),
    "data.mask_ignore": (lambda value: -1 <= value <= 255, "0 to 255, or -1 for none"),
    "train.seed": (lambda seed: 0 <= seed < 2**32, "0 to 2**32 - 1"),
    "data.scene.digits": _INT_RANGE,
    "data.scene.digit_size": _INT_RANGE,
    "augment.scale": _RANGE,
    "affine.scale": _RANGE,
    "data.val_fraction": (lambda share: 0 <= share < 1, "a share below 1"),
    **dict.fromkeys(("augment.brightness", "augment.noise"), (lambda share: 0 <= share <= 1, "0 to 1")),
    **dict.fromkeys(
        ("augment.contrast", "pseudo_label.region_contrast", "eval.region_contrast"),
        (lambda value: 0 <= value < math.inf, "at least 0, and finite"),
    ),
    "affine.flip": (lambda rate: 0 <= rate <= 1, "a probability"),
    "model.drop_path_rate": (lambda rate: 0 <= rate < 1, "a probability below 1"),
    "train.join": (lambda share: 0 <= share < 1, "a share below 1"),
    "cam.scales": (lambda scales: scales and all(map(_is_scale, scales)), "at least one scale above 0"),
    "pseudo_label.dilations": (
        lambda dilations: dilations and all(map(_is_positive_int, dilations)),
        "at least one whole number of pixels, each at least 1",
    ),
    "eval.stages": (
        _are_stages,
        f"different stages: cam, or some of {', '.join(list(STAGES)[1:])} joined by +, each once",
    ),
    "eval.protocols": (
        lambda names: names and set(names) <= set(PROTOCOLS) and len(set(names)) == len(names),
        f"some of {', '.join(PROTOCOLS)}",
    ),
    "eval.checkpoint": (
        lambda name: name in ("newest", "best") or name.isdecimal(),
        "newest, best (by checkpoint.best_metric) or a step in digits",
    ),
    "eval.sweep.criterion": (lambda name: name in ("miou", "contrast"), "miou or contrast"),
    "eval.sweep.grid": (
        lambda scores: scores and all(score >= 0 for score in scores),
        "at least one background score, each at least 0",
    ),
    "eval.canvases": (
        lambda sizes: sizes and all(len(size) == 2 and all(map(_is_positive_int, size)) for size in sizes),
        "at least one (height, width)",
    ),
}


def check_config(config, reads_data=True):
    """Checks the names and ranges in a configuration; ConfigDict checks the types.

    Args:
      config: ConfigDict of `default_config`'s keys.
      reads_data: whether to check `data.source`. Prediction and export do not open the data set.

    Raises:
      UserError: naming the first wrong key, its value and what is expected.
    """
    # Terms may be registered after this module was imported.
    best_metric = {"checkpoint.best_metric": loss_names()}
    for key, choices in (_CHOICES | best_metric).items():
        if key == "data.source" and not reads_data:
            continue
        _check(config, key, choices.__contains__, f"one of {', '.join(map(str, choices))}")
    _check_class_names(config)
    weights = {f"loss.{term.weight}": _AT_LEAST_0 for term in TERMS.values() if term.weight}
    for key, (is_good, expected) in (_RULES | weights).items():
        _check(config, key, is_good, expected)
    high = config.pseudo_label.high
    _check(config, "pseudo_label.low", lambda low: low <= high, f"at most pseudo_label.high = {high}")
    for stage in config.eval.stages:
        key = f"eval.background.{background_key(stage, config.eval.background)}"
        _check(config, key, lambda score: score >= 0, "the background's score in that stage, at least 0")
    if config.model.dtype == "bfloat16":
        _check(config, "cam.dtype", lambda name: name != "mixed", "auto or model with model.dtype bfloat16")
    if config.model.center_radius:
        _check(config, "model.pooling", lambda name: name != "average", "max with model.center_radius")
    if config.train.join:
        parts, share = config.train.grad_accum_steps, config.train.join
        expected = (
            f"at least {parts * math.ceil(1 / share)}, one joined image in each part, with train.join {share}"
        )
        _check(config, "train.batch_size", lambda count: count // parts * share >= 1, expected)
    _check_backbone(config)


def _check_class_names(config):
    key, layout = "data.class_names", SOURCES.get(config.data.source)
    if layout and layout.class_names:
        fixed = layout.class_names
        expected = f"the {len(fixed)} classes of {config.data.source}, {fixed[0]!r} to {fixed[-1]!r}"
        _check(config, key, lambda names: names == fixed, expected)
    if layout and layout.find_classes and config.data.class_names == ():
        return  # `with_class_names` takes them from the data.
    check_class_names(config.data.class_names)


def _check_backbone(config):
    """Checks that the backbone has the fused stages, and that every pass of the multi-scale CAM is large enough."""
    backbone = build.backbone(config)
    smallest, num_stages = backbone.smallest_side, len(backbone.embed_dims)

    def is_enough(size):
        return all(min(scaled_size(size, s, backbone.stride)) >= smallest for s in (1.0, *config.cam.scales))

    of_backbone = f"for model.variant {config.model.variant}"
    expected = f"1 to {num_stages} {of_backbone}"
    _check(config, "model.fused_stages", lambda count: 1 <= count <= num_stages, expected)
    expected = f"sides of {smallest} pixels or more at each of cam.scales, {of_backbone}"
    _check(config, "eval.canvases", lambda canvases: all(map(is_enough, canvases)), expected)
    _check(config, "train.crop_size", lambda side: is_enough((side, side)), expected)
    if config.train.join:
        expected = f"more than {backbone.stride}, the pixels of a cell, with train.join"
        _check(config, "train.crop_size", lambda side: side > backbone.stride, expected)


def _check(config, key, is_good, expected):
    value = config
    for part in key.split("."):
        value = value.get(part)
    try:
        good = is_good(value)
    except TypeError:
        good = False  # ConfigDict does not check types inside tuples.
    if not good:
        raise UserError(f"config.{key} is {value!r}: expected {expected}")
