"""From pictures to masks on the device: the stages of inference (METHOD.md section 6).

A stage is named by what refines the CAMs, in this order and joined by "+": `cam` (nothing), `affinity`, `par`, `crf`,
`affinity+crf`, `par+crf`, `affinity+par+crf`, ... Every chain starts from the CAMs, so `crf` and `cam+crf` are the
same, and so are `par` and `cam+par`.

All pictures are padded: each lies in the top left corner of a canvas, `sizes` [B, 2] says where it ends, and what
lies beyond changes nothing inside (`rml_jax.ops.padded`).
"""

import dataclasses
import fractions
import math

import jax
import jax.numpy as jnp
from flax import nnx

from rml_jax.ops.affinity import random_walk
from rml_jax.ops.cam import EPSILON, scaled_size, with_background
from rml_jax.ops.crf import dense_crf_batch
from rml_jax.ops.grid import ceil_div
from rml_jax.ops.normalize import normalize
from rml_jax.ops.padded import inside, mirror_inside, resize_inside
from rml_jax.ops.par import par
from rml_jax.ops.pseudo_label import PseudoLabelConfig, gather_classes, pseudo_labels

PROTOCOLS = ("predicted", "given")
"""Whose tags decide which classes an image may contain: the model's own, or the ground truth's."""

TAG_THRESHOLD = 0.5
"""The `predicted` protocol's threshold on the sigmoid of a class logit."""

REFINERS = ("affinity", "par", "crf")
"""What can refine the CAMs, in the order in which it does."""


def parse_stage(name):
    """The refiners of a stage.

    Args:
      name: such as "cam", "par" or "affinity+crf".

    Returns:
      Tuple out of REFINERS, in their order; () for "cam".

    Raises:
      ValueError: if a part is unknown, comes twice or out of order.
    """
    parts = name.split("+")
    refiners = tuple(parts[1:] if parts[0] == "cam" else parts)
    if refiners != tuple(refiner for refiner in REFINERS if refiner in refiners):
        raise ValueError(
            f"{name!r} is no stage: expected cam, or some of {', '.join(REFINERS)} joined by + in this order"
        )
    return refiners


def before_crf(name):
    """The name of the stage whose probabilities a stage's CRF refines; of a stage without CRF, its own."""
    return "+".join(refiner for refiner in parse_stage(name) if refiner != "crf") or "cam"


def background_key(name):
    """Where a stage's probabilities are made, which is where the background's score enters: cam, affinity or par."""
    return before_crf(name).split("+")[0]


@dataclasses.dataclass(frozen=True)
class StagesConfig:
    """Settings of the stages.

    Attributes:
      stages: their names.
      scales, flip: the passes of the multi-scale CAM.
      stride: pixels per cell of the network's last grid.
      radius: greatest step of the random walk, in cells.
      pseudo_label: how pseudo labels are made; `par` uses the same refinement.
      crf: name of the CRF's settings (`rml_jax.ops.crf.SETTINGS`).
      probabilities_of: the stages whose probabilities are wanted beside their masks.
    """

    stages: tuple[str, ...]
    scales: tuple[float, ...]
    flip: bool
    stride: int
    radius: int
    pseudo_label: PseudoLabelConfig
    crf: str
    probabilities_of: tuple[str, ...] = ()

    @property
    def soft_stages(self):
        """The stages without CRF that are wanted or that a wanted CRF refines."""
        return tuple(dict.fromkeys(map(before_crf, self.stages)))


def make_network(graphdef, config):
    """Builds the pure function from pictures to maps.

    Args:
      graphdef: nnx.GraphDef of `RML`.
      config: StagesConfig.

    Returns:
      Function of parameters, images uint8 [B, H, W, 3] and sizes int32 [B, 2], to be jitted. It gives a dict of
        probabilities: float32 [B, C], sigmoid of the class logits,
        cams: float32 [B, H, W, C] in [0, 1], of all classes, 0 outside of the pictures,
        affinity: float32 [B, N, N] in [0, 1], N cells of the canvas's last grid.
    """

    def network(params, images, sizes):
        logits, maps, affinity_logits = _forward(nnx.merge(graphdef, params), images, sizes, config)
        return {
            "probabilities": jax.nn.sigmoid(logits),
            "cams": _scale_inside(maps, *_extremes(maps, sizes), sizes),
            "affinity": jax.nn.sigmoid(affinity_logits),
        }

    return network


def make_tile_network(graphdef, config):
    """Builds the pure function from the tiles of larger pictures to maps.

    A CAM is scaled by its least and its greatest value in the whole picture, which no tile knows: a first pass over
    the tiles finds them, a second one scales by them.

    Args:
      graphdef: nnx.GraphDef of `RML`.
      config: StagesConfig.

    Returns:
      Function of parameters, tiles uint8 [B, H, W, 3], sizes int32 [B, 2] and the pictures' least and greatest values
      of every class's map, float32 [B, C] each, to be jitted. It gives the dict of `make_network`'s function, the
      CAMs scaled by those values, with
        least, greatest: float32 [B, C], the tile's own.
    """

    def network(params, tiles, sizes, least, greatest):
        logits, maps, affinity_logits = _forward(nnx.merge(graphdef, params), tiles, sizes, config)
        own_least, own_greatest = _extremes(maps, sizes)
        return {
            "probabilities": jax.nn.sigmoid(logits),
            "cams": _scale_inside(maps, least, greatest, sizes),
            "affinity": jax.nn.sigmoid(affinity_logits),
            "least": own_least,
            "greatest": own_greatest,
        }

    return network


def make_scores(graphdef, config):
    """Builds the pure function from pictures to class logits and CAMs, without what only the later stages need.

    Args:
      graphdef: nnx.GraphDef of `RML`.
      config: StagesConfig.

    Returns:
      Function of parameters, images uint8 [B, H, W, 3] and sizes int32 [B, 2]. H and W may be symbolic (`jax.export`)
      if they are multiples of `symbolic_step`. It gives
        logits: float32 [B, C],
        cams: float32 [B, H, W, C], as `make_network`'s.
    """

    def scores(params, images, sizes):
        logits, maps, _ = _forward(nnx.merge(graphdef, params), images, sizes, config)
        return logits, _scale_inside(maps, *_extremes(maps, sizes), sizes)

    return scores


def _forward(model, images, sizes, config):
    """Class logits [B, C], CAMs before they are scaled [B, H, W, C], affinity logits [B, N, N]."""
    # XLA drops what is not used of the outputs: only the pass at scale 1 pays for the affinity.
    outputs = {
        scale: _pass(model, normalize(images), sizes, scale, config)
        for scale in dict.fromkeys((1.0, *config.scales))
    }
    whole = outputs[1.0][0]
    maps = sum(_enlarge(*outputs[scale], sizes, images.shape[1:3], scale, config) for scale in config.scales)
    count = 2 if config.flip and 1.0 in config.scales else 1
    return _views(whole.logits, count)[0], maps, _views(whole.affinity_logits, count)[0]


def _pass(model, pictures, sizes, scale, config):
    """RMLOutputs of the pictures at one scale, each followed by its mirror, and their sizes at that scale."""
    canvas = pictures.shape[1:3]
    new_canvas = _scaled_canvas(canvas, scale, config.stride)
    new_sizes = _scaled_sizes(sizes, canvas, scale, config.stride)
    if scale != 1:
        pictures = resize_inside(pictures, sizes, new_canvas, new_sizes)
    views, view_sizes = pictures, new_sizes
    if config.flip and scale in config.scales:
        views = jnp.stack([pictures, mirror_inside(pictures, new_sizes)], axis=1)
        views = views.reshape(-1, *pictures.shape[1:])
        view_sizes = jnp.stack([new_sizes, new_sizes], axis=1).reshape(-1, 2)
    return model(views, sizes=view_sizes, with_context=False), new_sizes


def _scaled_canvas(canvas, scale, stride):
    """`scaled_size`, also of a canvas with symbolic sides (`jax.export`), multiples of `symbolic_step`."""
    if _is_symbolic(canvas):
        factor = _fraction(scale)
        return tuple(side * factor.numerator // factor.denominator for side in canvas)
    return scaled_size(canvas, scale, stride)


def _scaled_sizes(sizes, canvas, scale, stride):
    """`scaled_size` of traced sizes, rounded to even as Python does."""
    if _is_symbolic(canvas):
        factor = _fraction(scale)
        low, rest = jnp.divmod(sizes * factor.numerator, factor.denominator)
        up = (2 * rest > factor.denominator) | ((2 * rest == factor.denominator) & (low % 2 == 1))
        return jnp.maximum(stride, low + up)
    return jnp.array(scaled_size(range(max(canvas) + 1), scale, stride), jnp.int32)[sizes]


def symbolic_step(config):
    """What the sides of a canvas must be multiples of where they are symbolic, so that no scale leaves a remainder.

    Args:
      config: StagesConfig.

    Returns:
      int, in pixels.
    """
    return config.stride * math.lcm(*(_fraction(scale).denominator for scale in config.scales))


def _fraction(scale):
    return fractions.Fraction(scale).limit_denominator(64)


def _is_symbolic(canvas):
    return not all(isinstance(side, int) for side in canvas)


def _enlarge(outputs, new_sizes, sizes, canvas, scale, config):
    """The CAMs of one pass before their normalisation, on the canvas; METHOD.md section 4."""
    maps, grid_sizes = outputs.cam_logits, ceil_div(new_sizes, config.stride)
    if config.flip:
        maps, mirrored = _views(maps, 2)
        maps = jnp.maximum(maps, mirror_inside(mirrored, grid_sizes))
    return resize_inside(jax.nn.relu(maps), grid_sizes, canvas, sizes)


def _views(x, count):
    """[B count, ...] as a list of `count` arrays [B, ...]: of the pictures, and of their mirrors if there are."""
    x = x.reshape(-1, count, *x.shape[1:])
    return [x[:, view] for view in range(count)]


def _extremes(maps, sizes):
    """The least and the greatest value of every map [B, H, W, C] in its picture, [B, C] each."""
    real = inside(sizes, maps.shape[1:3])[..., None]
    return (
        jnp.min(jnp.where(real, maps, jnp.inf), axis=(1, 2)),
        jnp.max(jnp.where(real, maps, -jnp.inf), axis=(1, 2)),
    )


def _scale_inside(maps, least, greatest, sizes):
    """The maps from their least and greatest values to [0, 1], as `min_max_normalize` does; 0 outside."""
    real = inside(sizes, maps.shape[1:3])[..., None]
    least, greatest = least[:, None, None], greatest[:, None, None]
    return jnp.where(real, (maps - least) / (greatest - least + EPSILON), 0)


def make_refine(config):
    """Builds the pure function from maps to masks and probabilities, for all stages before their CRF.

    Args:
      config: StagesConfig.

    Returns:
      Function, to be jitted, of
        maps: dict from `make_network`'s function,
        images, sizes: as there,
        classes, used: int32 and bool [B, K], the allowed classes in K slots (`tagged_slots`),
        backgrounds: dict from the names of `config.soft_stages` to the background's score, float32 scalars.
      It gives a dict of
        masks: dict stage -> uint8 [B, H, W], 0 background, 1..C classes,
        probabilities: dict stage -> float32 [B, H, W, 1 + K], those that a CRF refines and `probabilities_of`.
    """
    used_later = {before_crf(name) for name in config.stages if "crf" in parse_stage(name)}
    used_later.update(map(before_crf, config.probabilities_of))

    def refine(maps, images, sizes, classes, used, backgrounds):
        cams = gather_classes(maps["cams"], classes)
        soft = {
            name: _probabilities(
                parse_stage(name), cams, maps["affinity"], images, sizes, used, backgrounds[name], config
            )
            for name in config.soft_stages
        }
        return {
            "masks": {
                name: slots_to_labels(scores.argmax(axis=-1), classes) for name, scores in soft.items()
            },
            "probabilities": {name: soft[name] for name in used_later},
        }

    return refine


def _probabilities(refiners, cams, affinity, images, sizes, used, background, config):
    """float32 [B, H, W, 1 + K], background first; summing to 1 up to PAR's growth."""
    if "affinity" in refiners:
        scores = _walk(cams, affinity, sizes, used, background, config)
    else:
        scores = with_background(cams, used, background)
    if "par" in refiners:
        pseudo = config.pseudo_label
        scores = par(images, scores, dilations=pseudo.dilations, iterations=pseudo.iterations, sizes=sizes)
    return scores


def _walk(cams, affinity, sizes, used, background, config):
    """Stage `affinity`: probabilities on the network's grid, propagated by one step of the random walk."""
    canvas = cams.shape[1:3]
    grid, grid_sizes = tuple(ceil_div(side, config.stride) for side in canvas), ceil_div(sizes, config.stride)
    scores = with_background(resize_inside(cams, sizes, grid, grid_sizes), used, background)
    # Nothing walks in from beyond the picture.
    real = inside(grid_sizes, grid).reshape(len(cams), -1, 1)
    walked = random_walk(scores, jnp.where(real, affinity, 0), config.radius)
    return resize_inside(walked, grid_sizes, canvas, sizes)


def slots_to_labels(slots, classes):
    """Class numbers from slots.

    Args:
      slots: int [B, H, W], 0 background, 1..K slots.
      classes: int [B, K], the class 0..C-1 in each slot.

    Returns:
      uint8 [B, H, W], 0 background, 1..C classes.
    """
    numbers = jnp.pad(classes + 1, ((0, 0), (1, 0)))
    return jnp.take_along_axis(numbers[:, None, :], slots, axis=2).astype(jnp.uint8)


def make_crf(config):
    """Builds the pure function of the last refiner, the dense CRF.

    Args:
      config: StagesConfig.

    Returns:
      Function of images, sizes, classes (see `make_refine`) and probabilities float32 [B, H, W, 1 + K], to be
      jitted. It gives a dict of
        masks: uint8 [B, H, W],
        probabilities: float32 [B, H, W, 1 + K].
    """

    def crf(images, sizes, classes, probabilities):
        # PAR lets them grow; the CRF takes logarithms of what must be probabilities.
        probabilities = probabilities / jnp.maximum(probabilities.sum(axis=-1, keepdims=True), 1e-8)
        marginals, _ = dense_crf_batch(
            images, probabilities, sizes, slots=probabilities.shape[-1], settings=config.crf
        )
        masks = slots_to_labels(marginals.argmax(axis=-1), classes)
        return {"masks": masks, "probabilities": marginals}

    return crf


def make_pictures(config):
    """Builds the pure function of what the report shows beside the masks.

    Args:
      config: StagesConfig.

    Returns:
      Function of cams and affinity (see `make_network`), images, sizes and ground-truth tags [B, C], to be jitted. It
      gives a dict of
        cam: float32 [B, H, W] in [0, 1], the strongest given class's map,
        pixel: int32 [B, 2], row and column of its maximum,
        affinity: float32 [B, h, w] in [0, 1], on the network's last grid: the affinity to the cell of that pixel,
        pseudo_label: uint8 [B, H, W], what training would learn from, which treats padding as training does.
    """

    def pictures(cams, affinity, images, sizes, tags):
        canvas = images.shape[1:3]
        box = jnp.pad(sizes, ((0, 0), (2, 0)))
        labels = pseudo_labels(cams, images.astype(jnp.float32), tags, box, config.pseudo_label)
        cam = jnp.max(cams * tags[:, None, None, :], axis=-1)
        row, column = jnp.divmod(cam.reshape(len(cam), -1).argmax(axis=1), canvas[1])
        grid = tuple(ceil_div(side, config.stride) for side in canvas)
        cell = row // config.stride * grid[1] + column // config.stride
        return {
            "cam": cam,
            "pixel": jnp.stack([row, column], axis=1),
            "affinity": affinity[jnp.arange(len(cell)), cell].reshape(-1, *grid),
            "pseudo_label": labels.astype(jnp.uint8),
        }

    return pictures
