"""Functions from the network's maps to probabilities and masks."""

import functools

import jax
import jax.numpy as jnp

from rml_jax.ops.cam import with_background
from rml_jax.ops.contrast import OFFSETS, choose_score, region_contrast
from rml_jax.ops.grid import ceil_div
from rml_jax.ops.pseudo_label import gather_classes
from rml_jax.ops.region import inside
from rml_jax.stages.registry import STAGES, base_stage, split_stage

SWEPT_AT_ONCE = 2**25
"""Most probabilities that many scores are computed in at once: 128 MiB in float32. Stages take a few times that."""


def make_refine(config):
    """Builds the pure function from maps to masks and probabilities of all chains' bases.

    Args:
      config: StagesConfig.

    Returns:
      Function, to be jitted, of
        maps: dict from `make_network`'s function,
        images, sizes: as there,
        classes, used: int32 and bool [B, K], the allowed classes in K slots (`tagged_slots`),
        backgrounds: dict from the names of `config.bases` to the background's score, float32 [B] or a scalar. With
          `config.region_contrast`, the score of each image is chosen near it.
      It gives a dict of
        masks: dict base -> uint8 [B, H, W], 0 background, 1..C classes,
        probabilities: dict base -> float32 [B, H, W, 1 + K], of the bases that other stages refine and those in
          `probabilities_of`,
        backgrounds: dict base -> float32 [B], the scores that the images have.
    """
    used_later = {base for base, rest in map(split_stage, config.stages) if rest}
    used_later.update(map(base_stage, config.probabilities_of))

    def refine(maps, images, sizes, classes, used, backgrounds):
        cams = gather_classes(maps["cams"], classes)
        inputs = {"images": images, "sizes": sizes, "affinity": maps["affinity"]}
        compute = _base_at_chosen_scores if config.region_contrast else _base
        soft, scores = {}, {}
        for name in config.bases:
            near = jnp.broadcast_to(backgrounds[name], len(cams))
            soft[name], scores[name] = compute(name, cams, used, near, inputs, config)
        return {
            "masks": {name: _masks(probabilities, classes) for name, probabilities in soft.items()},
            "probabilities": {name: soft[name] for name in used_later},
            "backgrounds": scores,
        }

    return refine


def make_sweep(config, num_classes, at_once=SWEPT_AT_ONCE, with_contrast=False):
    """Builds the pure function that compares the masks of all chains' bases with annotations, for many backgrounds.

    What does not depend on the background's score, such as the weights of PAR, is computed once.

    Args:
      config: StagesConfig.
      num_classes: C.
      at_once: see SWEPT_AT_ONCE; one background's score is the least.
      with_contrast: whether to compute `contrast`.

    Returns:
      Function, to be jitted, of
        cams: float32 [B, H, W, K] in [0, 1], of the allowed classes of each image,
        used: bool [B, K], which of the K slots hold an allowed class,
        affinity, images, sizes: see `make_network`,
        annotations: uint8 [B, H, W], 0..C, 255 for pixels that are not scored,
        backgrounds: float32 [T], the background's scores.
      It gives a dict of
        counts: dict base -> int32 [B, T, 1 + C, 1 + K], the pixels by annotated class and by slot, background first,
        slots: dict base -> uint8 [B, T, H, W], 0 background, 1..K slots.
        contrast: dict base -> float32 [B, T], the `region_contrast` of each mask; {} unless asked for.
    """

    def sweep(cams, used, affinity, images, sizes, annotations, backgrounds):
        inputs = {"images": images, "sizes": sizes, "affinity": affinity}
        # Ignored pixels are zeros in all classes. float32 is exact up to 2**24 pixels.
        truth = jax.nn.one_hot(annotations, 1 + num_classes)

        def at(backgrounds):
            soft = {name: _swept(name, cams, used, backgrounds, inputs, config) for name in config.bases}
            slots = {name: probabilities.argmax(axis=-1) for name, probabilities in soft.items()}
            return {
                "counts": {name: _count(truth, chosen, 1 + used.shape[1]) for name, chosen in slots.items()},
                "slots": {name: chosen.astype(jnp.uint8) for name, chosen in slots.items()},
                "contrast": {
                    name: _contrast(chosen, inputs, 1 + used.shape[1])
                    for name, chosen in slots.items()
                    if with_contrast
                },
            }

        count = len(backgrounds)
        found = jax.lax.map(at, _in_parts(backgrounds, cams, at_once))
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf.reshape(-1, *leaf.shape[2:])[:count], 0, 1), found)

    return sweep


def _in_parts(backgrounds, cams, at_once):
    """Splits scores [T, ...] into parts of equal size [P, T / P, ...]; the last one fills up the last part."""
    count, values = len(backgrounds), cams.size + cams[..., 0].size
    parts = ceil_div(count, max(1, at_once // values))
    size = ceil_div(count, parts)
    # A remainder would be compiled as a second program.
    filled = jnp.concatenate([backgrounds, jnp.repeat(backgrounds[-1:], parts * size - count, axis=0)])
    return filled.reshape(parts, size, *backgrounds.shape[1:])


def _count(truth, slots, num_slots):
    """Counts pixels by class, one-hot [B, H, W, 1 + C], and by slot [T, B, H, W], int32 [T, B, 1 + C, 1 + K]."""
    return jnp.einsum("bhwc,tbhwk->tbck", truth, jax.nn.one_hot(slots, num_slots)).astype(jnp.int32)


def make_link(stage, config):
    """Builds the pure function of one stage that follows a chain's base.

    Args:
      stage: Stage.
      config: StagesConfig.

    Returns:
      Function of inputs (dict of the stage's `needs`), classes (see `make_refine`) and probabilities float32
      [B, H, W, 1 + K], to be jitted. It gives a dict of
        masks: uint8 [B, H, W],
        probabilities: float32 [B, H, W, 1 + K].
    """

    def link(inputs, classes, probabilities):
        probabilities = stage.apply(probabilities, config, **inputs)
        return {"masks": _masks(probabilities, classes), "probabilities": probabilities}

    return link


def _base(name, cams, used, backgrounds, inputs, config):
    """Computes the probabilities of a base at scores [B], float32 [B, H, W, 1 + K]. Returns them and the scores."""
    first, *others = (STAGES[part] for part in name.split("+"))
    probabilities = first.from_cams(cams, used, _by_image(backgrounds), config, **first.select(inputs))
    for stage in others:
        probabilities = stage.apply(probabilities, config, **stage.select(inputs))
    return probabilities, backgrounds


def _by_image(scores):
    """Returns scores [B], or a scalar, in the shape that the stages take."""
    return scores.reshape(-1, 1, 1, 1)


def _base_at_chosen_scores(name, cams, used, near, inputs, config, at_once=SWEPT_AT_ONCE):
    """Computes the same as `_base` at the scores near `near` [B] that are best for each image."""

    def better(best, scores):
        soft = _swept(name, cams, used, scores, inputs, config)
        contrast = _contrast(soft.argmax(axis=-1), inputs, soft.shape[-1]).T
        value, place = choose_score(contrast, scores.T, near, config.region_contrast)
        images = jnp.arange(len(cams))
        found = value, soft[place, images], scores[place, images]
        is_better = value > best[0]
        chosen = (
            jnp.where(is_better.reshape(-1, *[1] * (new.ndim - 1)), new, old)
            for new, old in zip(found, best, strict=True)
        )
        return tuple(chosen), None

    tried = near + jnp.asarray(OFFSETS, jnp.float32)[:, None]
    start = jnp.full_like(near, -jnp.inf), jnp.zeros((*cams.shape[:3], 1 + used.shape[1])), near
    (_, probabilities, scores), _ = jax.lax.scan(better, start, _in_parts(tried, cams, at_once))
    return probabilities, scores


def _contrast(slots, inputs, num_slots):
    """Computes the contrast of masks [T, B, H, W] with the images, float32 [T, B]."""
    real = inside(inputs["sizes"], inputs["images"].shape[1:3])
    return region_contrast(slots, inputs["images"], real, num_slots)


def _swept(name, cams, used, backgrounds, inputs, config):
    """Computes the probabilities of a base at each of the scores [T] or [T, B], float32 [T, B, H, W, 1 + K]."""
    first, *others = (STAGES[part] for part in name.split("+"))
    if first.independent_classes:
        others = [first, *others]
        start = functools.partial(with_background, cams, used)
    else:
        start = functools.partial(first.from_cams, cams, used, config=config, **first.select(inputs))
    probabilities = jax.vmap(start)(jax.vmap(_by_image)(backgrounds))
    for stage in others:
        apply = functools.partial(stage.apply, config=config, **stage.select(inputs))
        probabilities = (_apply_together if stage.independent_classes else jax.vmap)(apply)(probabilities)
    return probabilities


def _apply_together(apply):
    """Does what `jax.vmap` does for a function of probabilities [B, H, W, K], by one call with T * K classes."""

    def apply_to_all(probabilities):
        classes = jnp.moveaxis(probabilities, 0, -2)
        applied = apply(classes.reshape(*classes.shape[:-2], -1))
        return jnp.moveaxis(applied.reshape(*applied.shape[:-1], *classes.shape[-2:]), -2, 0)

    return apply_to_all


def _masks(probabilities, classes):
    return slots_to_labels(probabilities.argmax(axis=-1), classes)


def slots_to_labels(slots, classes):
    """Computes class numbers from slots.

    Args:
      slots: int [B, H, W], 0 background, 1..K slots.
      classes: int [B, K], the class 0..C-1 in each slot.

    Returns:
      uint8 [B, H, W], 0 background, 1..C classes.
    """
    numbers = jnp.pad(classes + 1, ((0, 0), (1, 0)))
    return jnp.take_along_axis(numbers[:, None, :], slots, axis=2).astype(jnp.uint8)
