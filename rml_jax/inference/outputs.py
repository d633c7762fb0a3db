"""What `rml_jax.commands.predict` writes for an image."""

import io
import json
import re

import numpy as np
from PIL import Image

from rml_jax import visualize
from rml_jax.evaluation.masks import file_numbers, palette_png
from rml_jax.utils.files import write_file

_QUALITY = 90  # of JPEG
_STRIP = 512  # rows that are coloured at a time, since colours are blended in 64-bit numbers
_LEGEND_WIDTH = 240  # least
_UNUSUAL = re.compile(r"[^\w-]+")  # in a file's name


class OutputFolder:
    """Saves predictions below a folder.

    masks/NAME.png         palette PNG, numbered as the data set's own masks
    overlays/NAME.jpg      the mask over the image, with a legend
    cams/NAME/N_CLASS.jpg  heat map of each tag's CAM, on request
    predictions.json       tags, scores and areas, and what could not be read (`finish`)

    Args:
      root: pathlib.Path, an existing folder.
      class_names: the C names.
      mask_values: the number of each class in mask files; () numbers them 1..C.
      with_cams: whether heat maps are wanted.
      datasets: data sets to write as well (`rml_jax.inference.datasets`).
    """

    def __init__(self, root, class_names, mask_values, *, with_cams, datasets=()):
        self._root, self._with_cams, self._datasets = root, with_cams, datasets
        self._numbers = file_numbers(mask_values)
        self._number_of = {name: int(self._numbers[c]) for c, name in enumerate(class_names, 1)}
        self._names = {number: name for name, number in self._number_of.items()}
        self._images, self._failed = [], []

    def write(self, name, path, image, prediction):
        """Writes the files of one prediction; several threads may.

        Args:
          name: of its files, which may hold folders.
          path: of the image, for the record.
          image: uint8 [H, W, 3].
          prediction: `rml_jax.inference.predictor.Prediction`.

        Returns:
          Its entry for `record`.
        """
        mask = self._numbers[prediction.mask]
        write_file(self._root / "masks" / f"{name}.png", palette_png(mask))
        counts = np.bincount(mask.ravel(), minlength=256)
        found = [int(number) for number in np.flatnonzero(counts) if number]
        overlay = _in_strips(visualize.overlay, image, mask)
        write_file(self._root / "overlays" / f"{name}.jpg", _jpeg(self._with_legend(overlay, found)))
        if self._with_cams:
            for tag, cam in zip(prediction.tags, np.moveaxis(prediction.cams, -1, 0), strict=True):
                file = f"{self._number_of[tag]}_{re.sub(_UNUSUAL, '_', tag)}.jpg"
                heat = _in_strips(visualize.heat_map, image, cam)
                write_file(self._root / "cams" / name / file, _jpeg(heat))
        return {
            "name": name,
            "file": str(path),
            "height": mask.shape[0],
            "width": mask.shape[1],
            "tags": prediction.tags,
            "scores": dict(zip(prediction.classes, map(float, prediction.scores), strict=True)),
            "areas": {
                label: {"pixels": int(counts[number]), "share": float(counts[number] / mask.size)}
                for number, label in {0: "background", **{n: self._names[n] for n in found}}.items()
            },
            "tiles": prediction.tiles,
        }

    def record(self, name, prediction, entry):
        """Adds one prediction to predictions.json, with its entry from `write`, and to the data sets."""
        for dataset in self._datasets:
            dataset.add(name, prediction)
        self._images.append(entry)

    def fail(self, path, reason):
        """Records an image that could not be read."""
        self._failed.append({"file": str(path), "reason": reason})

    def content(self):
        """Returns the records of what was saved, as JSON-like values, for another process's `extend`."""
        return {
            "images": self._images,
            "failed": self._failed,
            "datasets": [dataset.content() for dataset in self._datasets],
        }

    def extend(self, content):
        """Adds the records of another process (`content`)."""
        self._images += content["images"]
        self._failed += content["failed"]
        for dataset, added in zip(self._datasets, content["datasets"], strict=True):
            dataset.extend(added)

    def finish(self, settings, names):
        """Writes predictions.json and the data sets.

        Args:
          settings: dict that heads predictions.json.
          names: of all images, in the order of the record.
        """
        order = {name: number for number, name in enumerate(names)}
        self._images.sort(key=lambda image: order[image["name"]])
        record = {
            **settings,
            "numbers": {"background": 0, **self._number_of},
            "pictures": self._images,
            "failed": self._failed,
        }
        write_file(self._root / "predictions.json", json.dumps(record, indent=1) + "\n")
        for dataset in self._datasets:
            dataset.write()

    def _with_legend(self, overlay, numbers):
        if not numbers:
            return overlay
        width = max(_LEGEND_WIDTH, overlay.shape[1])
        # Large images are looked at from afar.
        factor = max(1, round(width / _LEGEND_WIDTH / 4))
        names, colours = [self._names[number] for number in numbers], visualize.palette()[numbers]
        legend = (
            visualize.legend(names, colours, width // factor).repeat(factor, axis=0).repeat(factor, axis=1)
        )
        legend = np.pad(legend, ((0, 0), (0, width - legend.shape[1]), (0, 0)), constant_values=255)
        beside = ((0, 0), (0, width - overlay.shape[1]), (0, 0))
        return np.concatenate([np.pad(overlay, beside, constant_values=255), legend])


def _in_strips(paint, image, labels):
    """`paint`, which colours each pixel on its own, a few rows at a time."""
    result = np.empty_like(image)
    for top in range(0, len(image), _STRIP):
        rows = slice(top, top + _STRIP)
        result[rows] = paint(image[rows], labels[rows])
    return result


def _jpeg(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
