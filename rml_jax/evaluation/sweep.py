"""The choice of the background's score: the images to use, and their confusion matrices or contrasts by score."""

import collections
import dataclasses

import numpy as np

from rml_jax.data.summary import item_tags
from rml_jax.evaluation import metrics
from rml_jax.labels import IGNORE
from rml_jax.ops.contrast import OFFSETS, choose_score
from rml_jax.stages.canvas import crop_labels
from rml_jax.stages.refine import make_sweep
from rml_jax.stages.runner import FEW_SLOTS

CRITERIA = {
    "miou": lambda scores, key: metrics.mean_iou(scores.matrices[key]),
    "contrast": lambda scores, key: scores.mean_of_images(key),
}
"""Name in `eval.sweep.criterion` -> function of Scores and a key of theirs. The highest value is chosen."""
CONTRAST_STAGE = "par"
"""The chain whose masks' contrast chooses the score of all stages: coarse CAMs follow edges at no score."""


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

    Protocols that allow the same classes in an image share its computation. With `eval.region_contrast`, each image
    has the score near that of the grid that it would have in prediction.

    Args:
      runner: StageRunner.
      program: function of `make_sweep`, compiled by the runner, with contrasts if the runner's stages choose by them.
      batch: Batch of items with `mask`.
      maps: from the runner's `maps`, NumPy arrays.
      allowed: dict protocol -> bool [B, C], the allowed classes.
      grid: the T background scores.

    Returns:
      List with a dict protocol -> base of a chain -> int64 [T, 1 + C, 1 + C] for each image.
    """
    side, weight = 1 + maps["cams"].shape[-1], runner.stages.region_contrast
    near, places = scores_near(grid) if weight else (np.array(grid)[:, None], np.arange(len(grid))[:, None])

    def of_image(entry, classes, found):
        chosen = places[:, 0]
        if weight:
            _, best = choose_score(found("contrast")[places], near, np.array(grid), weight)
            chosen = np.take_along_axis(places, np.asarray(best)[:, None], axis=1)[:, 0]
        return _matrices(entry, found, chosen, classes, side)

    scores = np.zeros(places.max() + 1)
    scores[places] = near
    return _sweep(runner, program, batch, maps, allowed, scores, of_image, runner.stages.bases)


def make_contrast_sweep(config, num_classes):
    """Builds the function of `make_sweep` for `contrast_batch`; arguments as there."""
    return make_sweep(dataclasses.replace(config, stages=(CONTRAST_STAGE,)), num_classes, with_contrast=True)


def contrast_batch(runner, program, batch, maps, allowed, grid, bases=(CONTRAST_STAGE,)):
    """Computes the contrasts of the masks of a batch's images at each background score of a grid.

    Args:
      runner, batch, maps, allowed, grid: see `sweep_batch`; the items need no `mask`.
      program: function of `make_contrast_sweep`, compiled by the runner, or of another sweep with contrasts.
      bases: of the program.

    Returns:
      List with a dict protocol -> base -> float32 [T] for each image.
    """

    def of_image(entry, classes, found):
        return found("contrast")

    return _sweep(runner, program, batch, maps, allowed, grid, of_image, bases)


def scores_near(grid):
    """Returns the scores near those of a grid, [T, N], and the place of each among the different ones, int [T, N]."""
    near = np.round(np.add.outer(grid, OFFSETS), 4)
    near = np.where((near > 0) & (near < 1), near, np.array(grid)[:, None])
    _, places = np.unique(near, return_inverse=True)
    return near, places.reshape(near.shape)


def _sweep(runner, program, batch, maps, allowed, scores, of_image, bases):
    """Runs `make_sweep`'s function for a batch.

    Args:
      runner, program, batch, maps, allowed: see `sweep_batch`.
      scores: the background scores.
      of_image: function of an entry of the batch, its classes and a function that gives the part of the result under
        a key, of this image and one base, as a NumPy array; what is not asked for stays on the device.
      bases: that the function gives.

    Returns:
      List with a dict protocol -> base of a chain -> result of `of_image`.
    """
    result = [{} for _ in batch.entries]
    for slots, part, protocols in _cases(runner, batch, allowed):
        annotations = _annotations(batch, part)
        found = _run(runner, program, batch, maps, part, slots, annotations, np.float32(scores))
        for place, (number, classes) in enumerate(part):
            of_base = {
                base: of_image(
                    batch.entries[number],
                    classes,
                    lambda key, base=base, found=found, place=place: np.asarray(found[key][base][place]),
                )
                for base in bases
            }
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
        # Others are counted at the annotation's own resolution, or not at all.
        if "mask" in item and item["mask"].shape == size:
            annotation[: size[0], : size[1]] = item["mask"]
    return annotations


def _numbers(classes):
    """Returns the class number in each slot, uint8 [1 + K], background first."""
    return np.array([0, *(number + 1 for number in classes)], np.uint8)


def _matrices(entry, found, chosen, classes, side):
    """Returns an image's confusion matrices, int64 [T, 1 + C, 1 + C].

    Args:
      entry: of the batch.
      found: function that gives `counts` and `slots` of the image (`_sweep`).
      chosen: int [T], the places of the chosen scores among all.
      classes: of the slots.
      side: 1 + C.
    """
    _, item, size = entry
    of_slot = _numbers(classes)
    if item["mask"].shape != size:
        masks = of_slot[found("slots")[chosen]]
        cut = (crop_labels(mask, size, item["mask"].shape) for mask in masks)
        return np.stack([metrics.confusion_matrix(mask, item["mask"], side) for mask in cut])
    counts = found("counts")[chosen]
    result = np.zeros((len(counts), side, side), np.int64)
    result[:, :, of_slot] = counts[..., : len(of_slot)]
    return result
