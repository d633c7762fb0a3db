"""Scores a network on a split: pictures through the device in batches, masks into one confusion matrix."""

import jax
import numpy as np
from PIL import Image

from rml_jax import build
from rml_jax.evaluation import metrics
from rml_jax.evaluation.stages import PROTOCOLS, TAG_THRESHOLD, StagesConfig, make_predict
from rml_jax.report import Sample


class Evaluator:
    """Runs one network over a source with masks.

    Every picture is resized to the canvas of the nearest shape, so that a data set of mixed sizes compiles one
    program per canvas; masks are resized back, nearest neighbour, and scored at the annotation's resolution.

    Args:
      config: ConfigDict of the run.
      graphdef: nnx.GraphDef of `RML`.
    """

    def __init__(self, config, graphdef):
        self._config = config
        self._classes = tuple(config.data.class_names)
        stages = StagesConfig(
            stages=tuple(config.eval.stages),
            background=dict(config.eval.background),
            scales=config.cam.scales,
            flip=config.cam.flip,
            stride=build.stride(config),
            radius=config.loss.radius,
            pseudo_label=build.pseudo_label_config(config),
        )
        self._predict = jax.jit(make_predict(graphdef, stages))

    def evaluate(self, params, source, progress):
        """Scores all pictures of a source (METHOD.md section 6).

        Args:
          params: nnx.State of the network.
          source: random-access source with masks.
          progress: called with the number of pictures done.

        Returns:
          Dict with `images`, `classification`, `miou` and `iou` as in metrics.json (`rml_jax.report`).
        """
        names = ("background", *self._classes)
        counts = {
            (protocol, stage): np.zeros((len(names), len(names)), np.int64)
            for protocol in PROTOCOLS
            for stage in self._config.eval.stages
        }
        probabilities, tags = [], []
        for done, (item, prediction) in enumerate(self._predictions(params, source, range(len(source))), 1):
            probabilities.append(prediction["probabilities"])
            tags.append(item["tags"])
            for protocol, stage in counts:
                mask = _resize_labels(prediction["masks"][protocol][stage], item["mask"].shape)
                counts[protocol, stage] += metrics.confusion_matrix(mask, item["mask"], len(names))
            progress(done)
        scores = {"images": len(source)}
        scores["classification"] = metrics.classification_scores(np.stack(probabilities), np.stack(tags))
        scores["miou"] = _by_protocol(counts, metrics.mean_iou)
        scores["iou"] = _by_protocol(counts, lambda matrix: _named_iou(matrix, names))
        return scores

    def samples(self, params, source, count):
        """The first pictures of a source with all that the report shows of them.

        Args:
          params: nnx.State of the network.
          source: random-access source with masks.
          count: how many, at most the source's length.

        Returns:
          List of report.Sample.
        """
        chosen = range(min(count, len(source)))
        return [self._sample(*pair) for pair in self._predictions(params, source, chosen)]

    def _sample(self, item, prediction):
        size = item["mask"].shape
        predicted = prediction["probabilities"] > TAG_THRESHOLD
        masks = prediction["masks"]["predicted"]
        cam = Image.fromarray(prediction["cam"]).resize(size[::-1], Image.Resampling.BILINEAR)
        return Sample(
            id=item["id"],
            image=item["image"],
            tags=self._names(item["tags"]),
            predicted_tags=self._names(predicted),
            cam=np.clip(np.asarray(cam), 0, 1),
            pseudo_label=_resize_labels(prediction["pseudo_label"].astype(np.uint8), size),
            # In the order of the stages: jax sorts the keys of dictionaries.
            predictions={stage: _resize_labels(masks[stage], size) for stage in self._config.eval.stages},
            ground_truth=item["mask"],
        )

    def _names(self, tags):
        return tuple(name for name, tag in zip(self._classes, tags, strict=True) if tag)

    def _predictions(self, params, source, indices):
        """Yields (item, its prediction as NumPy arrays). Items come grouped by canvas."""
        waiting = {}
        for index in indices:
            item = source[index]
            canvas = nearest_canvas(item["image"].shape[:2], self._config.eval.canvases)
            batch = waiting.setdefault(canvas, [])
            batch.append(item)
            if len(batch) == self._config.eval.batch_size:
                yield from self._run(params, waiting.pop(canvas), canvas)
        for canvas, batch in waiting.items():
            yield from self._run(params, batch, canvas)

    def _run(self, params, items, canvas):
        # A last, smaller batch is filled up with its first picture: a new shape would compile a new program.
        fill = [items[0]] * (self._config.eval.batch_size - len(items))
        images = np.stack([_resize_image(item["image"], canvas) for item in items + fill])
        tags = np.stack([item["tags"] for item in items + fill])
        batch = jax.device_get(self._predict(params, images, tags))
        for number, item in enumerate(items):
            yield item, jax.tree.map(lambda array, n=number: array[n], batch)


def nearest_canvas(size, canvases):
    """The canvas whose ratio of height to width is nearest to a picture's.

    Args:
      size: (height, width) of the picture.
      canvases: (height, width) of each canvas.

    Returns:
      One of the canvases.
    """
    ratio = np.log(size[0] / size[1])
    return min(map(tuple, canvases), key=lambda canvas: abs(np.log(canvas[0] / canvas[1]) - ratio))


def _resize_image(image, size):
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


def _resize_labels(mask, size):
    if mask.shape == size:
        return mask
    return np.asarray(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))


def _by_protocol(counts, score):
    result = {protocol: {} for protocol in PROTOCOLS}
    for (protocol, stage), matrix in counts.items():
        result[protocol][stage] = score(matrix)
    return result


def _named_iou(matrix, names):
    values = metrics.iou_per_class(matrix)
    return {
        name: None if np.isnan(value) else float(value) for name, value in zip(names, values, strict=True)
    }
