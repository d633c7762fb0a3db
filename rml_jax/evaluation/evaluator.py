"""Scores a network on a split: pictures through the devices in batches, masks into one confusion matrix."""

import collections
import functools

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from rml_jax import build
from rml_jax.evaluation import metrics
from rml_jax.evaluation.canvas import cut_labels, pad_picture, place, smallest_side
from rml_jax.evaluation.stages import (
    TAG_THRESHOLD,
    StagesConfig,
    background_key,
    before_crf,
    make_crf,
    make_network,
    make_pictures,
    make_refine,
    parse_stage,
)
from rml_jax.models.mit import cells
from rml_jax.ops.pseudo_label import tagged_slots
from rml_jax.report import Sample

# Classes are refined in this many slots, the next number up that holds those of every image in the batch.
_SLOTS = (4, 8, 16, 32, 64, 128)


class Evaluator:
    """Runs one network over a source with masks.

    Pictures are padded to the smallest canvas that holds them, so that a data set of mixed sizes compiles a handful
    of programs; padding does not change a prediction (`rml_jax.evaluation.stages`). Masks have the annotation's
    resolution. All devices of this process share the pictures, `config.eval.batch_size` each, and every picture is
    computed on one device alone, so that their number does not change a result.

    Args:
      config: ConfigDict of the run.
      graphdef: nnx.GraphDef of `RML`.

    Attributes:
      programs: the programs used so far, each (name, canvas, class slots).
      canvases: Counter of the pictures per canvas, since the last `evaluate` began.
      resized: names of the pictures, since then, that were too large for any canvas or too small for the network.
    """

    def __init__(self, config, graphdef):
        self._config = config
        self._classes = tuple(config.data.class_names)
        self._stages = StagesConfig(
            stages=tuple(config.eval.stages),
            scales=config.cam.scales,
            flip=config.cam.flip,
            stride=build.stride(config),
            radius=config.loss.radius,
            pseudo_label=build.pseudo_label_config(config),
            crf=config.eval.crf,
        )
        self._smallest = smallest_side(build.backbone(config), config.cam.scales)
        mesh = Mesh(np.array(jax.local_devices()), ("data",))
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self._batch_size = config.eval.batch_size * mesh.size
        share = functools.partial(_share, mesh)
        self._network = share(make_network(graphdef, self._stages), 1, 3)
        self._refine = share(make_refine(self._stages), 0, 5)
        self._crf = share(make_crf(self._stages), 0, 4)
        self._pictures = share(make_pictures(self._stages), 0, 5)
        self.programs, self.canvases, self.resized = set(), collections.Counter(), []

    def fixed_backgrounds(self):
        """The background scores of the configuration: dict protocol -> stage without CRF -> score."""
        scores = {
            name: self._config.eval.background[background_key(name)] for name in self._stages.soft_stages
        }
        return {protocol: dict(scores) for protocol in self._config.eval.protocols}

    def evaluate(self, params, source, backgrounds, progress, save=None):
        """Scores all pictures of a source (METHOD.md section 6).

        Args:
          params: nnx.State of the network.
          source: random-access source with masks.
          backgrounds: dict protocol -> stage without CRF -> background score (`fixed_backgrounds`, `sweep`).
          progress: called with the number of pictures done.
          save: function of protocol, stage, id and mask (uint8, 0..C) that keeps every predicted mask, or None.

        Returns:
          Scores.
        """
        self.canvases.clear()
        self.resized.clear()
        scores = Scores(("background", *self._classes))
        probabilities, tags = [], []
        predictions = self._predictions(params, source, range(len(source)), backgrounds)
        for done, (index, item, prediction) in enumerate(predictions, 1):
            probabilities.append(prediction["probabilities"])
            tags.append(item["tags"])
            for protocol, masks in prediction["masks"].items():
                for stage, mask in masks.items():
                    scores.add(protocol, stage, index, mask, item["mask"])
                    if save:
                        save(protocol, stage, item["id"], mask)
            progress(done)
        scores.images = len(source)
        scores.classification = metrics.classification_scores(np.stack(probabilities), np.stack(tags))
        return scores

    def sweep(self, params, source, count, grid, progress):
        """mIoU of every stage without CRF at each background score of a grid. A stage's CRF takes over its best one.

        Args:
          params: nnx.State of the network.
          source: random-access source with masks.
          count: how many of its first pictures to take.
          grid: the background scores.
          progress: called with the number of pictures done.

        Returns:
          Dict protocol -> stage -> list of mIoU, one for each score of the grid.
        """
        names = ("background", *self._classes)
        scores = [Scores(names) for _ in grid]
        soft = self._stages.soft_stages
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

    def samples(self, params, source, indices, backgrounds=None):
        """All that the report shows of some pictures.

        Args:
          params: nnx.State of the network.
          source: random-access source with masks.
          indices: which pictures, in the order in which they are wanted.
          backgrounds: see `evaluate`; those of the configuration if None.

        Returns:
          List of report.Sample.
        """
        backgrounds = backgrounds or self.fixed_backgrounds()
        found = {
            index: self._sample(item, prediction)
            for index, item, prediction in self._predictions(params, source, indices, backgrounds, True)
        }
        return [found[index] for index in indices]

    def _sample(self, item, prediction):
        predicted = prediction["probabilities"] > TAG_THRESHOLD
        cam = prediction["cam"]
        if cam.shape != item["mask"].shape:
            cam = Image.fromarray(cam).resize(item["mask"].shape[::-1], Image.Resampling.BILINEAR)
        return Sample(
            id=item["id"],
            image=item["image"],
            tags=self._names(item["tags"]),
            predicted_tags=self._names(predicted),
            cam=np.clip(np.asarray(cam), 0, 1),
            pseudo_label=prediction["pseudo_label"],
            predictions=next(iter(prediction["masks"].values())),
            ground_truth=item["mask"],
            affinity=prediction["affinity"],
            pixel=tuple(prediction["pixel"].tolist()),
        )

    def _names(self, tags):
        return tuple(name for name, tag in zip(self._classes, tags, strict=True) if tag)

    # --- Batches ---

    def _batches(self, source, indices):
        """Yields `_Batch`es of one canvas each. Pictures come grouped by canvas."""
        waiting = {}
        for index in indices:
            item = source[index]
            size, canvas = place(item["image"].shape[:2], self._config.eval.canvases, self._smallest)
            self.canvases[canvas] += 1
            if size != item["image"].shape[:2]:
                self.resized.append(item["id"])
            batch = waiting.setdefault(canvas, [])
            batch.append((index, item, size))
            if len(batch) == self._batch_size:
                yield _Batch(waiting.pop(canvas), canvas, self._batch_size)
        for canvas, batch in waiting.items():
            yield _Batch(batch, canvas, self._batch_size)

    def _predictions(self, params, source, indices, backgrounds, with_pictures=False):
        """Yields (index, item, prediction): its probabilities and its masks by protocol and stage."""
        params = self._everywhere(params)
        for batch in self._batches(source, indices):
            maps, probabilities = self._maps(params, batch)
            masks = {
                protocol: self._masks(batch, maps, slots, backgrounds[protocol])
                for protocol, slots in self._slots(batch, probabilities).items()
            }
            pictures = {}
            if with_pictures:
                arguments = maps["cams"], maps["affinity"], batch.images, batch.sizes, batch.tags
                pictures = self._call(self._pictures, "pictures", batch, *arguments)
            masks, pictures = jax.device_get((masks, pictures))
            for number, (index, item, size) in enumerate(batch.entries):
                masks_here = self._in_order(batch, number, masks, self._stages.stages)
                prediction = {"probabilities": probabilities[number], "masks": masks_here}
                if with_pictures:
                    grid = [cells(side, self._stages.stride) for side in size]
                    prediction["cam"] = pictures["cam"][number, : size[0], : size[1]]
                    prediction["affinity"] = pictures["affinity"][number, : grid[0], : grid[1]]
                    prediction["pixel"] = pictures["pixel"][number] * item["image"].shape[:2] // size
                    prediction["pseudo_label"] = batch.cut(number, pictures["pseudo_label"])
                yield index, item, prediction

    def _swept(self, params, source, count, grid):
        """Yields (index, item, list of masks by protocol and stage, one for each score of the grid)."""
        params = self._everywhere(params)
        for batch in self._batches(source, range(count)):
            maps, probabilities = self._maps(params, batch)
            slots = self._slots(batch, probabilities)
            results = []
            for score in grid:
                scores = dict.fromkeys(self._stages.soft_stages, score)
                masks = {p: self._soft(batch, maps, slots[p], scores)["masks"] for p in slots}
                results.append(jax.device_get(masks))
            for number, (index, item, _) in enumerate(batch.entries):
                soft = self._stages.soft_stages
                yield index, item, [self._in_order(batch, number, masks, soft) for masks in results]

    def _in_order(self, batch, number, masks, stages):
        """One picture's masks by protocol and stage as configured: jax sorts the keys of dictionaries."""
        return {
            protocol: {stage: batch.cut(number, masks[protocol][stage]) for stage in stages}
            for protocol in self._config.eval.protocols
        }

    def _everywhere(self, params):
        return jax.device_put(params, self._replicated)

    def _maps(self, params, batch):
        """The network's maps, on the devices, and the class probabilities, here."""
        maps = self._call(self._network, "network", batch, params, batch.images, batch.sizes)
        return maps, np.asarray(maps.pop("probabilities"))

    def _slots(self, batch, probabilities):
        """Dict protocol -> classes and used (`tagged_slots`), in the same number of slots for all protocols."""
        allowed = {"predicted": probabilities > TAG_THRESHOLD, "given": batch.tags > 0}
        allowed = {protocol: allowed[protocol] for protocol in self._config.eval.protocols}
        most = max(tags.sum(axis=1).max() for tags in allowed.values())
        slots = min(next(slots for slots in (*_SLOTS, most) if slots >= most), len(self._classes))
        return {protocol: jax.device_get(tagged_slots(tags, slots)) for protocol, tags in allowed.items()}

    def _soft(self, batch, maps, slots, backgrounds):
        # Numbers that are traced: other background scores need no new program.
        scores = {name: np.float32(backgrounds[name]) for name in self._stages.soft_stages}
        arguments = maps, batch.images, batch.sizes, *slots, scores
        return self._call(self._refine, "refine", batch, *arguments, slots=slots[0].shape[1])

    def _masks(self, batch, maps, slots, backgrounds):
        """Dict stage -> masks on the devices, uint8 [B, H, W]."""
        soft = self._soft(batch, maps, slots, backgrounds)
        result = {}
        for stage in self._stages.stages:
            if "crf" in parse_stage(stage):
                probabilities = soft["probabilities"][before_crf(stage)]
                arguments = batch.images, batch.sizes, slots[0], probabilities
                result[stage] = self._call(self._crf, "crf", batch, *arguments, slots=slots[0].shape[1])
            else:
                result[stage] = soft["masks"][before_crf(stage)]
        return result

    def _call(self, function, name, batch, *arguments, slots=0):
        self.programs.add((name, batch.canvas, slots))
        return function(*arguments)


class _Batch:
    """Pictures on one canvas, with the arrays that the programs take."""

    def __init__(self, entries, canvas, batch_size):
        self.entries, self.canvas = entries, canvas
        # A last, smaller batch is filled up with its first picture: a new shape would compile a new program.
        filled = entries + [entries[0]] * (batch_size - len(entries))
        self.images = np.stack([pad_picture(item["image"], size, canvas) for _, item, size in filled])
        self.sizes = np.array([size for _, _, size in filled], np.int32)
        self.tags = np.stack([item["tags"] for _, item, _ in filled])

    def cut(self, number, masks):
        """One picture's mask at its annotation's resolution, out of uint8 [B, H, W]."""
        _, item, size = self.entries[number]
        return cut_labels(masks[number], size, item["mask"].shape)


class Scores:
    """Confusion matrices of a set of masks, and each image's IoU.

    Args:
      names: the class names with "background" first.

    Attributes:
      images: how many were scored.
      classification: see `metrics.classification_scores`; None where no network took part.
      matrices: dict (protocol, stage) -> int64 [K, K].
      by_image: dict (protocol, stage) -> dict from the image's index to its `metrics.image_iou`.
    """

    def __init__(self, names):
        self.names = names
        self.images, self.classification = 0, None
        self.matrices, self.by_image = {}, {}

    def add(self, protocol, stage, index, mask, annotation):
        """Counts one image's mask, uint8 [H, W]."""
        matrix = metrics.confusion_matrix(mask, annotation, len(self.names))
        key = (protocol, stage)
        self.matrices[key] = self.matrices.get(key, 0) + matrix
        self.by_image.setdefault(key, {})[index] = metrics.image_iou(matrix)

    def mean_iou(self):
        """Dict protocol -> stage -> mIoU."""
        return self._by_protocol(metrics.mean_iou)

    def iou(self):
        """Dict protocol -> stage -> class name -> IoU, None for a class that the ground truth does not hold."""
        return self._by_protocol(self._named_iou)

    def worst_and_best(self, protocol, stage, count):
        """Indices of the images with the least and the greatest IoU, most extreme first; at most `count` each."""
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


def _share(mesh, function, replicated, count):
    """`function` jitted, its arguments and results shared out over the devices along their first axis.

    Args:
      mesh: Mesh with the axis "data".
      function: of arrays; no picture's result depends on another's.
      replicated: how many leading arguments every device gets whole.
      count: number of arguments up to which they are shared out; those behind are whole.
    """
    whole, shared = PartitionSpec(), PartitionSpec("data")

    def call(*arguments):
        specs = tuple(shared if replicated <= i < count else whole for i in range(len(arguments)))
        # Without communication there is nothing for the check of varying axes to find.
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=shared, check_vma=False)(
            *arguments
        )

    return jax.jit(call)
