"""Scoring of a network on a split, in batches on all devices, into one confusion matrix."""

import collections

import jax
import numpy as np
from PIL import Image

from rml_jax.evaluation import metrics
from rml_jax.evaluation.parts import Part
from rml_jax.evaluation.samples import Sample
from rml_jax.evaluation.sweep import CRITERIA, contrast_batch, make_contrast_sweep, sweep_batch
from rml_jax.ops.grid import ceil_div
from rml_jax.stages.canvas import crop_labels
from rml_jax.stages.refine import make_sweep
from rml_jax.stages.registry import background_key
from rml_jax.stages.runner import TAG_THRESHOLD, StageRunner
from rml_jax.stages.sample_maps import make_sample_maps
from rml_jax.utils import distributed


class Evaluator:
    """Runs one network over a source.

    Images are padded to the smallest canvas that holds them, so that a data set of mixed sizes compiles only a few
    programs; padding does not change a prediction (`rml_jax.stages`). Masks have the annotation's resolution. A batch
    is split over all devices of this process, `config.eval.batch_size` images each, and every image is computed on
    one device, so that the number of devices does not change results.

    Args:
      config: ConfigDict of the run.
      graphdef: nnx.GraphDef of `RML`.

    Attributes:
      programs: the programs used so far, each (name, canvas, class slots).
      canvases: Counter of the images per canvas in the last call of `evaluate`.
      resized: names of its images that were too large for any canvas or too small for the network.
    """

    def __init__(self, config, graphdef):
        self._config = config
        self._classes = tuple(config.data.class_names)
        self._runner = StageRunner(config, graphdef)
        self._stages = self._runner.stages
        self._batch_size = config.eval.batch_size * self._runner.devices
        if config.eval.sweep.criterion == "contrast":
            sweep = make_contrast_sweep(self._stages, len(self._classes))
        else:
            by_image = config.eval.region_contrast > 0
            sweep = make_sweep(self._stages, len(self._classes), with_contrast=by_image)
        self._sweep = self._runner.shard_map(sweep, 0, 6)
        self._sample_maps = self._runner.shard_map(make_sample_maps(self._stages), 0, 5)
        self.programs, self.canvases, self.resized = self._runner.programs, collections.Counter(), []

    def fixed_backgrounds(self):
        """Returns the background scores of the configuration: dict protocol -> base of a chain -> score."""
        background = self._config.eval.background
        scores = {name: background[background_key(name, background)] for name in self._stages.bases}
        return {protocol: dict(scores) for protocol in self._config.eval.protocols}

    def evaluate(self, params, source, backgrounds, progress, save=None, parts=None):
        """Scores all images of a source (docs/method.md, Inference and evaluation).

        Args:
          params: nnx.State of the network.
          source: random-access source. Without masks, tags alone are scored.
          backgrounds: dict protocol -> base of a chain -> background score (`fixed_backgrounds`, `sweep`).
          progress: called with the number of images done.
          save: function of protocol, stage, id and mask (uint8, 0..C), called with every predicted mask; or None.
          parts: opened PartFolder, by which several processes share the images and an evaluation that was stopped
            goes on; None scores all images in this process.

        Returns:
          Scores.
        """
        scored = getattr(source, "with_masks", True)
        if not scored and save is None:
            backgrounds = {}  # No masks are needed.

        def add(part, index, item, prediction):
            for protocol, masks in prediction["masks"].items():
                for stage, mask in masks.items():
                    if "mask" in item:
                        part.scores[0].add(protocol, stage, index, mask, item["mask"])
                    if save:
                        save(protocol, stage, item["id"], mask)

        def predict(indices):
            return self._predictions(params, source, indices, backgrounds)

        part = self._collect(range(len(source)), predict, add, 1, progress, parts)
        scores, self.canvases, self.resized = part.scores[0], part.canvases, part.resized
        scores.images = len(source)
        scores.classification = metrics.classification_scores(*part.classified())
        return scores

    def sweep(self, params, source, indices, grid, progress, parts=None):
        """Computes how good the base of every chain is at each background score of a grid, by `eval.sweep.criterion`.

        The criterion "contrast" is for CONTRAST_STAGE alone, whatever the chains.

        Args:
          params: nnx.State of the network.
          source: random-access source, with masks if the criterion is "miou".
          indices: of the images to use.
          grid: the background scores.
          progress: called with the number of images done.
          parts: see `evaluate`.

        Returns:
          Dict protocol -> base -> list of the criterion's values, one for each score of the grid.
        """
        criterion = self._config.eval.sweep.criterion
        compute, name = (sweep_batch, "add_matrix") if criterion == "miou" else (contrast_batch, "add_value")

        def add(part, index, item, prediction):
            for protocol, stages in prediction["swept"].items():
                for stage, one_each in stages.items():
                    for score, value in zip(part.scores, one_each, strict=True):
                        getattr(score, name)(protocol, stage, index, value)

        def predict(indices):
            return self._swept(params, source, indices, grid, compute)

        scores = self._collect(indices, predict, add, len(grid), progress, parts).scores
        value = CRITERIA[criterion]
        return {
            protocol: {
                stage: [value(score, (protocol, stage)) for score in scores]
                for at, stage in scores[0].matrices
                if at == protocol
            }
            for protocol in self._config.eval.protocols
        }

    def _collect(self, indices, predict, add, count, progress, parts):
        """Returns the Part of all images.

        Args:
          indices: of the images.
          predict: function of indices that yields (index, item, prediction).
          add: function of part, index, item and prediction that adds the image's masks.
          count: number of Scores in a Part.
          progress: see `evaluate`.
          parts: PartFolder, by which several processes share the images and an evaluation is resumed; or None.
        """
        names = ("background", *self._classes)
        part, known, total = Part(names, count), set(), len(indices)
        if parts:
            known = set(parts.load().tags)
            distributed.wait_for_all("every process knows what is done")
            indices = distributed.share([index for index in indices if index not in known])
        for done, (index, item, prediction) in enumerate(predict(indices), 1):
            part.add(index, item, prediction)
            add(part, index, item, prediction)
            part.programs = set(self.programs)
            if parts and parts.is_due():
                part = parts.save(part)
            # The other processes are about as far.
            progress(min(len(known) + done * jax.process_count(), total) if parts else done)
        if parts is None:
            return part
        if part.tags:
            parts.save(part)
        distributed.wait_for_all("every process has saved its parts")
        part = parts.load()
        self.programs |= part.programs
        return part

    def samples(self, params, source, indices, backgrounds=None, *, with_class_cams=False):
        """Computes the Samples of some images for the report.

        Args:
          params: nnx.State of the network.
          source: random-access source with masks.
          indices: of the images.
          backgrounds: see `evaluate`; None uses those of the configuration.
          with_class_cams: whether the samples have `class_cams`, of the predicted tags or, without any, the given.

        Returns:
          List of Sample, in the order of `indices`.
        """
        backgrounds = backgrounds or self.fixed_backgrounds()
        found = {
            index: self._sample(item, prediction)
            for index, item, prediction in self._predictions(
                params, source, indices, backgrounds, with_maps=True, with_class_cams=with_class_cams
            )
        }
        return [found[index] for index in indices]

    def _sample(self, item, prediction):
        predicted = prediction["probabilities"] > TAG_THRESHOLD
        cam = prediction["cam"]
        height, width = item["image"].shape[:2]
        if cam.shape != (height, width):
            cam = Image.fromarray(cam).resize((width, height), Image.Resampling.BILINEAR)
        return Sample(
            id=item["id"],
            image=item["image"],
            tags=self._names(item["tags"]),
            predicted_tags=self._names(predicted),
            cam=np.clip(np.asarray(cam), 0, 1),
            pseudo_label=prediction["pseudo_label"],
            predictions=next(iter(prediction["masks"].values())),
            ground_truth=item.get("mask"),
            affinity=prediction["affinity"],
            pixel=tuple(prediction["pixel"].tolist()),
            class_cams=prediction.get("class_cams"),
        )

    def _names(self, tags):
        return tuple(name for name, tag in zip(self._classes, tags, strict=True) if tag)

    # --- Batches ---

    def _batches(self, source, indices):
        """Yields batches of one canvas each and the tags [B, C] of their images."""
        grouper = self._runner.grouper(self._batch_size)
        for index in (*indices, None):
            batches = grouper.rest() if index is None else grouper.add(index, source[index])
            for batch in batches:
                yield batch, np.stack([item["tags"] for item in batch.items])

    def _predictions(self, params, source, indices, backgrounds, *, with_maps=False, with_class_cams=False):
        """Yields (index, item, prediction): a dict of probabilities and, by protocol of `backgrounds`, masks."""
        runner, params = self._runner, self._runner.replicate(params)
        for batch, tags in self._batches(source, indices):
            maps, probabilities = runner.maps(params, batch)
            slots = self._slots(tags, probabilities) if backgrounds else {}
            masks = {p: runner.refined(batch, maps, slots[p], backgrounds[p])[0] for p in slots}
            shown = {}
            if with_maps:
                arguments = maps["cams"], maps["affinity"], batch.images, batch.sizes, tags
                shown = runner.call(self._sample_maps, "sample maps", batch, *arguments)
            masks, shown = jax.device_get((masks, shown))
            for number, (index, item, size) in enumerate(batch.entries):
                masks_here = self._in_order(batch, number, masks, self._stages.stages)
                prediction = _facts(batch, number, probabilities) | {"masks": masks_here}
                if with_maps:
                    grid = [ceil_div(side, self._stages.stride) for side in size]
                    prediction["cam"] = shown["cam"][number, : size[0], : size[1]]
                    prediction["affinity"] = shown["affinity"][number, : grid[0], : grid[1]]
                    prediction["pixel"] = shown["pixel"][number] * item["image"].shape[:2] // size
                    prediction["pseudo_label"] = _cut(batch, number, shown["pseudo_label"])
                if with_class_cams:
                    cams = np.asarray(maps["cams"][number])[: size[0], : size[1]]
                    allowed = probabilities[number] > TAG_THRESHOLD
                    labels = np.flatnonzero(allowed if allowed.any() else item["tags"])
                    prediction["class_cams"] = {int(label) + 1: cams[..., label] for label in labels}
                yield index, item, prediction

    def _swept(self, params, source, indices, grid, compute):
        """Yields (index, item, prediction), whose `swept` is the image's result of `sweep_batch` or another."""
        runner, params = self._runner, self._runner.replicate(params)
        for batch, tags in self._batches(source, indices):
            maps, probabilities = runner.maps(params, batch)
            allowed = self._allowed(tags, probabilities)
            swept = compute(runner, self._sweep, batch, jax.device_get(maps), allowed, grid)
            for number, ((index, item, _), of_image) in enumerate(zip(batch.entries, swept, strict=True)):
                yield index, item, _facts(batch, number, probabilities) | {"swept": of_image}

    def _in_order(self, batch, number, masks, stages):
        """Returns one image's masks by protocol and stage in the configured order; jax sorts the keys of dicts."""
        return {
            protocol: {stage: _cut(batch, number, masks[protocol][stage]) for stage in stages}
            for protocol in self._config.eval.protocols
            if protocol in masks
        }

    def _slots(self, tags, probabilities):
        """Returns protocol -> (classes, used) of `tagged_slots`, with the same number of slots for all protocols."""
        allowed = self._allowed(tags, probabilities)
        return dict(zip(allowed, self._runner.slots(*allowed.values()), strict=True))

    def _allowed(self, tags, probabilities):
        """Returns protocol -> bool [B, C], the allowed classes."""
        allowed = {"predicted": probabilities > TAG_THRESHOLD, "given": tags > 0}
        return {protocol: allowed[protocol] for protocol in self._config.eval.protocols}


def _facts(batch, number, probabilities):
    """Returns what a `Part` keeps of one image of a batch."""
    _, item, size = batch.entries[number]
    return {
        "probabilities": probabilities[number],
        "canvas": batch.canvas,
        "resized": size != item["image"].shape[:2],
    }


def _cut(batch, number, masks):
    """Crops one image's mask from uint8 [B, H, W], at the image's own resolution."""
    _, item, size = batch.entries[number]
    return crop_labels(masks[number], size, item["image"].shape[:2])
