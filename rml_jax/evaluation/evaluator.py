"""Scoring of a network on a split, in batches on all devices, into one confusion matrix."""

import collections

import jax
import numpy as np
from PIL import Image

from rml_jax.evaluation import metrics
from rml_jax.evaluation.samples import Sample
from rml_jax.ops.grid import ceil_div
from rml_jax.stages.canvas import crop_labels
from rml_jax.stages.registry import background_key
from rml_jax.stages.runner import TAG_THRESHOLD, StageRunner
from rml_jax.stages.sample_maps import make_sample_maps


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
      canvases: Counter of the images per canvas, since the last call of `evaluate` began.
      resized: names of the images, since then, that were too large for any canvas or too small for the network.
    """

    def __init__(self, config, graphdef):
        self._config = config
        self._classes = tuple(config.data.class_names)
        self._runner = StageRunner(config, graphdef)
        self._stages = self._runner.stages
        self._batch_size = config.eval.batch_size * self._runner.devices
        self._sample_maps = self._runner.shard_map(make_sample_maps(self._stages), 0, 5)
        self.programs, self.canvases, self.resized = self._runner.programs, collections.Counter(), []

    def fixed_backgrounds(self):
        """Returns the background scores of the configuration: dict protocol -> base of a chain -> score."""
        background = self._config.eval.background
        scores = {name: background[background_key(name, background)] for name in self._stages.bases}
        return {protocol: dict(scores) for protocol in self._config.eval.protocols}

    def evaluate(self, params, source, backgrounds, progress, save=None):
        """Scores all images of a source (docs/method.md, Inference and evaluation).

        Args:
          params: nnx.State of the network.
          source: random-access source. Without masks, tags alone are scored.
          backgrounds: dict protocol -> base of a chain -> background score (`fixed_backgrounds`, `sweep`).
          progress: called with the number of images done.
          save: function of protocol, stage, id and mask (uint8, 0..C), called with every predicted mask; or None.

        Returns:
          Scores.
        """
        self.canvases.clear()
        self.resized.clear()
        scores = Scores(("background", *self._classes))
        if not getattr(source, "with_masks", True) and save is None:
            backgrounds = {}  # No masks are needed.
        probabilities, tags = [], []
        predictions = self._predictions(params, source, range(len(source)), backgrounds)
        for done, (index, item, prediction) in enumerate(predictions, 1):
            probabilities.append(prediction["probabilities"])
            tags.append(item["tags"])
            for protocol, masks in prediction["masks"].items():
                for stage, mask in masks.items():
                    if "mask" in item:
                        scores.add(protocol, stage, index, mask, item["mask"])
                    if save:
                        save(protocol, stage, item["id"], mask)
            progress(done)
        scores.images = len(source)
        scores.classification = metrics.classification_scores(np.stack(probabilities), np.stack(tags))
        return scores

    def sweep(self, params, source, count, grid, progress):
        """Computes the mIoU of the base of every chain at each background score of a grid.

        Args:
          params: nnx.State of the network.
          source: random-access source with masks.
          count: number of its first images to use.
          grid: the background scores.
          progress: called with the number of images done.

        Returns:
          Dict protocol -> base -> list of mIoU, one for each score of the grid.
        """
        names = ("background", *self._classes)
        scores = [Scores(names) for _ in grid]
        soft = self._stages.bases
        for done, (index, item, prediction) in enumerate(self._swept(params, source, count, grid), 1):
            for score, masks_of in zip(scores, prediction, strict=True):
                for protocol, masks in masks_of.items():
                    for stage, mask in masks.items():
                        score.add(protocol, stage, index, mask, item["mask"])
            progress(done)
        return {
            protocol: {stage: [score.mean_iou()[protocol][stage] for score in scores] for stage in soft}
            for protocol in self._config.eval.protocols
        }

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
                self.canvases[batch.canvas] += len(batch.entries)
                self.resized += [i["id"] for _, i, size in batch.entries if size != i["image"].shape[:2]]
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
                prediction = {"probabilities": probabilities[number], "masks": masks_here}
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

    def _swept(self, params, source, count, grid):
        """Yields (index, item, list of masks by protocol and stage, one for each score of the grid)."""
        runner, params = self._runner, self._runner.replicate(params)
        for batch, tags in self._batches(source, range(count)):
            maps, probabilities = runner.maps(params, batch)
            slots = self._slots(tags, probabilities)
            results = []
            for score in grid:
                scores = dict.fromkeys(self._stages.bases, score)
                masks = {p: runner.soft(batch, maps, slots[p], scores)["masks"] for p in slots}
                results.append(jax.device_get(masks))
            for number, (index, item, _) in enumerate(batch.entries):
                soft = self._stages.bases
                yield index, item, [self._in_order(batch, number, masks, soft) for masks in results]

    def _in_order(self, batch, number, masks, stages):
        """Returns one image's masks by protocol and stage in the configured order; jax sorts the keys of dicts."""
        return {
            protocol: {stage: _cut(batch, number, masks[protocol][stage]) for stage in stages}
            for protocol in self._config.eval.protocols
            if protocol in masks
        }

    def _slots(self, tags, probabilities):
        """Returns protocol -> (classes, used) of `tagged_slots`, with the same number of slots for all protocols."""
        allowed = {"predicted": probabilities > TAG_THRESHOLD, "given": tags > 0}
        protocols = self._config.eval.protocols
        return dict(zip(protocols, self._runner.slots(*(allowed[p] for p in protocols)), strict=True))


def _cut(batch, number, masks):
    """Crops one image's mask from uint8 [B, H, W], at the image's own resolution."""
    _, item, size = batch.entries[number]
    return crop_labels(masks[number], size, item["image"].shape[:2])


class Scores:
    """Accumulates the confusion matrices of a set of masks, and each image's IoU.

    Args:
      names: the class names with "background" first.

    Attributes:
      images: number of scored images.
      classification: see `metrics.classification_scores`; None for masks from files.
      matrices: dict (protocol, stage) -> int64 [K, K].
      by_image: dict (protocol, stage) -> dict from the image's index to its `metrics.image_iou`.
    """

    def __init__(self, names):
        self.names = names
        self.images, self.classification = 0, None
        self.matrices, self.by_image = {}, {}

    def add(self, protocol, stage, index, mask, annotation):
        """Adds one image's mask, uint8 [H, W]."""
        matrix = metrics.confusion_matrix(mask, annotation, len(self.names))
        key = (protocol, stage)
        self.matrices[key] = self.matrices.get(key, 0) + matrix
        self.by_image.setdefault(key, {})[index] = metrics.image_iou(matrix)

    def mean_iou(self):
        """Returns a dict protocol -> stage -> mIoU."""
        return self._by_protocol(metrics.mean_iou)

    def iou(self):
        """Returns a dict protocol -> stage -> class name -> IoU; None for a class without ground truth."""
        return self._by_protocol(self._named_iou)

    def coverage(self):
        """Returns the numbers of annotated classes (with background) and pixels that mIoU covers."""
        # The ground truth is the same for all stages.
        annotated = next(iter(self.matrices.values())).sum(axis=1)
        return {"classes_scored": int((annotated > 0).sum()), "pixels_scored": int(annotated.sum())}

    def worst_and_best(self, protocol, stage, count):
        """Returns the indices of at most `count` images with the lowest IoU, and of as many with the highest."""
        scored = {index: iou for index, iou in self.by_image[protocol, stage].items() if not np.isnan(iou)}
        order = sorted(scored, key=lambda index: (scored[index], index))
        return order[:count], order[::-1][:count]

    def _named_iou(self, matrix):
        values = metrics.iou_per_class(matrix)
        return {
            name: None if np.isnan(value) else float(value)
            for name, value in zip(self.names, values, strict=True)
        }

    def _by_protocol(self, score):
        result = {}
        for (protocol, stage), matrix in self.matrices.items():
            result.setdefault(protocol, {})[stage] = score(matrix)
        return result
