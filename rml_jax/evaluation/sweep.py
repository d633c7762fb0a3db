"""The choice of the background's score: which images are used, and their confusion matrices at many scores.

By masks, a matrix counts an image's pixels by annotated and predicted class. Without masks, it counts them by the
class that is predicted for the image and the class that is predicted for its mirror image.
"""

import collections

import jax
import numpy as np

from rml_jax.data.summary import item_tags
from rml_jax.evaluation import metrics
from rml_jax.labels import IGNORE
from rml_jax.stages.canvas import crop_labels
from rml_jax.stages.runner import FEW_SLOTS

CRITERIA = {"miou": metrics.mean_iou, "agreement": metrics.agreement}
"""Name in `eval.sweep.criterion` -> function of the summed confusion matrix. The highest value is chosen."""


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
    side, result = 1 + maps["cams"].shape[-1], [{} for _ in batch.entries]
    for slots, part, protocols in _cases(runner, batch, allowed):
        annotations = _annotations(batch, part)
        found = _run(runner, program, batch, maps, part, slots, annotations, grid)
        for place, (number, classes) in enumerate(part):
            of_base = {
                base: _matrices(batch.entries[number], found, place, base, classes, side)
                for base in runner.stages.bases
            }
            result[number] |= dict.fromkeys(protocols[number, classes], of_base)
    return result


def agreement_batch(runner, program, views, allowed, grid):
    """Computes the confusion matrices between the masks of a batch's images and those of their mirror images.

    Args:
      runner, program, allowed, grid: see `sweep_batch`.
      views: two pairs of a Batch and its maps: the images, and `Batch.mirrored` of them.

    Returns:
      As `sweep_batch`; rows are the classes in the image, columns those in its mirror image.
    """
    batch, maps = views[0]
    side, result = 1 + maps["cams"].shape[-1], [{} for _ in batch.entries]
    for slots, part, protocols in _cases(runner, batch, allowed):
        unscored = np.full((len(part), *batch.canvas), IGNORE, np.uint8)
        found = [
            jax.device_get(_run(runner, program, *view, part, slots, unscored, grid)["slots"])
            for view in views
        ]
        for place, (number, classes) in enumerate(part):
            of_slot, (height, width) = _numbers(classes), batch.entries[number][2]
            of_base = {}
            for base in runner.stages.bases:
                first, second = (of_slot[slots[base][place, :, :height, :width]] for slots in found)
                pairs = zip(second[:, :, ::-1], first, strict=True)
                of_base[base] = np.stack([metrics.confusion_matrix(*pair, side) for pair in pairs])
            result[number] |= dict.fromkeys(protocols[number, classes], of_base)
    return result


def _cases(runner, batch, allowed):
    """Yields the number of slots, at most as many (image's number, its classes) as devices, and their protocols."""
    protocols = collections.defaultdict(list)
    for number in range(len(batch.entries)):
        for protocol, tags in allowed.items():
            protocols[number, tuple(np.flatnonzero(tags[number]).tolist())].append(protocol)
    by_slots = collections.defaultdict(list)
    for number, classes in protocols:
        by_slots[runner.slot_count(len(classes), FEW_SLOTS)].append((number, classes))
    for slots, cases in by_slots.items():
        for first in range(0, len(cases), runner.devices):
            yield slots, cases[first : first + runner.devices], protocols


def _run(runner, program, batch, maps, cases, slots, annotations, grid):
    """Runs `make_sweep`'s function for some (image's number, its classes)."""
    # As many as there are devices, since a new shape would compile a new program.
    filled = runner.devices - len(cases)
    cases, annotations = (
        cases + cases[:1] * filled,
        np.pad(annotations, ((0, filled), (0, 0), (0, 0)), "edge"),
    )
    numbers = np.array([number for number, _ in cases])
    classes, used = np.zeros((len(cases), slots), int), np.zeros((len(cases), slots), bool)
    for place, (_, allowed) in enumerate(cases):
        classes[place, : len(allowed)], used[place, : len(allowed)] = allowed, True
    cams = np.stack([maps["cams"][number][..., of] for number, of in zip(numbers, classes, strict=True)])
    arguments = (
        cams,
        used,
        maps["affinity"][numbers],
        batch.images[numbers],
        batch.sizes[numbers],
        annotations,
    )
    return runner.call(program, "sweep", batch, *arguments, grid, slots=slots)


def _annotations(batch, cases):
    """Returns the masks of some (image's number, its classes), uint8 [B, H, W] on the canvas."""
    annotations = np.full((len(cases), *batch.canvas), IGNORE, np.uint8)
    for annotation, (number, _) in zip(annotations, cases, strict=True):
        _, item, size = batch.entries[number]
        if item["mask"].shape == size:  # Others are counted at the annotation's own resolution.
            annotation[: size[0], : size[1]] = item["mask"]
    return annotations


def _numbers(classes):
    """Returns the class number in each slot, uint8 [1 + K], background first."""
    return np.array([0, *(number + 1 for number in classes)], np.uint8)


def _matrices(entry, found, place, base, classes, side):
    """Returns an image's confusion matrices, int64 [T, 1 + C, 1 + C], from the result of `make_sweep`'s function."""
    _, item, size = entry
    of_slot = _numbers(classes)
    if item["mask"].shape != size:
        masks = (of_slot[slots] for slots in np.asarray(found["slots"][base][place]))
        cut = (crop_labels(mask, size, item["mask"].shape) for mask in masks)
        return np.stack([metrics.confusion_matrix(mask, item["mask"], side) for mask in cut])
    counts = np.asarray(found["counts"][base][place])
    result = np.zeros((len(counts), side, side), np.int64)
    result[:, :, of_slot] = counts[..., : len(of_slot)]
    return result
