"""Functions from the network's maps to probabilities and masks."""

import functools

import jax
import jax.numpy as jnp

from rml_jax.ops.cam import with_background
from rml_jax.ops.grid import ceil_div
from rml_jax.ops.pseudo_label import gather_classes
from rml_jax.stages.registry import STAGES, base_stage, split_stage

SWEPT_AT_ONCE = 2**25
"""Most probabilities that the sweep computes at once: 128 MiB in float32. Stages take a few times as much."""


def make_refine(config):
    """Builds the pure function from maps to masks and probabilities of all chains' bases.

    Args:
      config: StagesConfig.

    Returns:
      Function, to be jitted, of
        maps: dict from `make_network`'s function,
        images, sizes: as there,
        classes, used: int32 and bool [B, K], the allowed classes in K slots (`tagged_slots`),
        backgrounds: dict from the names of `config.bases` to the background's score, float32 scalars.
      It gives a dict of
        masks: dict base -> uint8 [B, H, W], 0 background, 1..C classes,
        probabilities: dict base -> float32 [B, H, W, 1 + K], of the bases that other stages refine and those in
          `probabilities_of`.
    """
    used_later = {base for base, rest in map(split_stage, config.stages) if rest}
    used_later.update(map(base_stage, config.probabilities_of))

    def refine(maps, images, sizes, classes, used, backgrounds):
        cams = gather_classes(maps["cams"], classes)
        inputs = {"images": images, "sizes": sizes, "affinity": maps["affinity"]}
        soft = {name: _base(name, cams, used, backgrounds[name], inputs, config) for name in config.bases}
        return {
            "masks": {name: _masks(probabilities, classes) for name, probabilities in soft.items()},
            "probabilities": {name: soft[name] for name in used_later},
        }

    return refine


def make_sweep(config, num_classes, at_once=SWEPT_AT_ONCE):
    """Builds the pure function that compares the masks of all chains' bases with annotations, for many backgrounds.

    What does not depend on the background's score, such as the weights of PAR, is computed once.

    Args:
      config: StagesConfig.
      num_classes: C.
      at_once: see SWEPT_AT_ONCE; one background's score is the least.

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
            }

        count, values = len(backgrounds), cams.size + cams[..., 0].size
        parts = ceil_div(count, max(1, at_once // values))
        size = ceil_div(count, parts)
        # A remainder would be compiled as a second program.
        filled = jnp.pad(backgrounds, (0, parts * size - count), mode="edge").reshape(parts, size)
        found = jax.lax.map(at, filled)
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf.reshape(-1, *leaf.shape[2:])[:count], 0, 1), found)

    return sweep


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


def _base(name, cams, used, background, inputs, config):
    """Computes the probabilities of a base, float32 [B, H, W, 1 + K]."""
    first, *others = (STAGES[part] for part in name.split("+"))
    probabilities = first.from_cams(cams, used, background, config, **first.select(inputs))
    for stage in others:
        probabilities = stage.apply(probabilities, config, **stage.select(inputs))
    return probabilities


def _swept(name, cams, used, backgrounds, inputs, config):
    """Computes the probabilities of a base at each of the backgrounds [T], float32 [T, B, H, W, 1 + K]."""
    first, *others = (STAGES[part] for part in name.split("+"))
    if first.independent_classes:
        others = [first, *others]
        start = functools.partial(with_background, cams, used)
    else:
        start = functools.partial(first.from_cams, cams, used, config=config, **first.select(inputs))
    probabilities = jax.vmap(start)(backgrounds)
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
