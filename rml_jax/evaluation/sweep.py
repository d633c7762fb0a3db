"""The choice of the background's score: which images are used, and their confusion matrices at many scores."""

import collections

import numpy as np

from rml_jax.data.summary import item_tags
from rml_jax.evaluation import metrics
from rml_jax.labels import IGNORE
from rml_jax.stages.canvas import crop_labels
from rml_jax.stages.runner import FEW_SLOTS


def draw_images(source, count, seed):
    """Draws images at random, evenly over the classes; images without tags count as a class of their own.

    File names are often sorted by class, so that the first images of a split may all be of one.

    Args:
      source: random-access source. If it does not report its tags (`rml_jax.data.summary`), all images are alike.
      count: number of images, at least 1. If there are fewer, all are drawn.
      seed: of the draw, int >= 0.

    Returns:
      List of indices, ascending.
    """
    if count >= len(source):
        return list(range(len(source)))
    items = item_tags(source) or [(None, None)] * len(source)
    tags = [tuple(positions or ()) or (None,) for _, positions in items]
    waiting = collections.defaultdict(list)
    for index in np.random.default_rng(seed).permutation(len(source)).tolist():
        for tag in tags[index]:
            waiting[tag].append(index)
    drawn, per_class = set(), dict.fromkeys(waiting, 0)
    while len(drawn) < count:
        rarest = min(waiting, key=per_class.get)
        index = waiting[rarest].pop()
        if index not in drawn:
            drawn.add(index)
            for tag in tags[index]:
                per_class[tag] += 1
        waiting = {tag: indices for tag, indices in waiting.items() if indices}
    return sorted(drawn)


def sweep_batch(runner, program, batch, maps, allowed, grid):
    """Computes the confusion matrices of a batch's images at each background score of a grid.

    Protocols that allow the same classes in an image share its computation.

    Args:
      runner: StageRunner.
      program: function of `make_sweep`, compiled by the runner.
      batch: Batch of items with `mask`.
      maps: from the runner's `maps`, NumPy arrays.
      allowed: dict protocol -> bool [B, C], the allowed classes.
      grid: float32 [T], the background scores.

    Returns:
      List with a dict protocol -> base of a chain -> int64 [T, 1 + C, 1 + C] for each image.
    """
    protocols = collections.defaultdict(list)
    for number in range(len(batch.entries)):
        for protocol, tags in allowed.items():
            protocols[number, tuple(np.flatnonzero(tags[number]).tolist())].append(protocol)
    by_slots = collections.defaultdict(list)
    for number, classes in protocols:
        by_slots[runner.slot_count(len(classes), FEW_SLOTS)].append((number, classes))
    side, result = 1 + maps["cams"].shape[-1], [{} for _ in batch.entries]
    for slots, cases in by_slots.items():
        for first in range(0, len(cases), runner.devices):
            part = cases[first : first + runner.devices]
            # As many as there are devices, since a new shape would compile a new program.
            arguments = _arguments(batch, maps, part + part[:1] * (runner.devices - len(part)), slots)
            found = runner.call(program, "sweep", batch, *arguments, grid, slots=slots)
            for place, (number, classes) in enumerate(part):
                of_base = {
                    base: _matrices(batch.entries[number], found, place, base, classes, side)
                    for base in runner.stages.bases
                }
                result[number] |= dict.fromkeys(protocols[number, classes], of_base)
    return result


def _arguments(batch, maps, cases, slots):
    """Returns the sharded arguments of `make_sweep`'s function for some (image's number, its classes)."""
    numbers = np.array([number for number, _ in cases])
    classes, used = np.zeros((len(cases), slots), int), np.zeros((len(cases), slots), bool)
    for place, (_, allowed) in enumerate(cases):
        classes[place, : len(allowed)], used[place, : len(allowed)] = allowed, True
    annotations = np.full((len(cases), *batch.canvas), IGNORE, np.uint8)
    for annotation, number in zip(annotations, numbers, strict=True):
        _, item, size = batch.entries[number]
        if item["mask"].shape == size:  # Others are counted at the annotation's own resolution.
            annotation[: size[0], : size[1]] = item["mask"]
    cams = np.stack([maps["cams"][number][..., of] for number, of in zip(numbers, classes, strict=True)])
    return cams, used, maps["affinity"][numbers], batch.images[numbers], batch.sizes[numbers], annotations


def _matrices(entry, found, place, base, classes, side):
    """Returns an image's confusion matrices, int64 [T, 1 + C, 1 + C], from the result of `make_sweep`'s function."""
    _, item, size = entry
    of_slot = np.array([0, *(number + 1 for number in classes)], np.uint8)
    if item["mask"].shape != size:
        masks = (of_slot[slots] for slots in np.asarray(found["slots"][base][place]))
        cut = (crop_labels(mask, size, item["mask"].shape) for mask in masks)
        return np.stack([metrics.confusion_matrix(mask, item["mask"], side) for mask in cut])
    counts = np.asarray(found["counts"][base][place])
    result = np.zeros((len(counts), side, side), np.int64)
    result[:, :, of_slot] = counts[..., : len(of_slot)]
    return result
