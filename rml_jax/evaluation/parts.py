"""Results of some of a split's images: exact sums, in files, so that an evaluation can be shared and resumed."""

import collections
import io
import json
import shutil
import time

import numpy as np

from rml_jax.evaluation.scores import Scores
from rml_jax.utils.errors import UserError
from rml_jax.utils.files import atomic_write

_SETTINGS = "settings.json"


class Part:
    """What is known of some images.

    Args:
      names: the class names with "background" first.
      count: number of Scores, one for each background score that is tried.

    Attributes:
      scores: list of Scores.
      probabilities, tags: index of an image -> float32 [C].
      canvases: Counter of the images per canvas.
      resized: names of the images that were too large for any canvas or too small for the network.
      programs: the programs used, each (name, canvas, class slots).
    """

    def __init__(self, names, count=1):
        self.names = names
        self.scores = [Scores(names) for _ in range(count)]
        self.probabilities, self.tags = {}, {}
        self.canvases, self.resized, self.programs = collections.Counter(), [], set()

    def add(self, index, item, prediction):
        """Adds an image but for its scores, which the caller adds to `scores`.

        Args:
          index: of the image.
          item: of the source.
          prediction: dict with `probabilities`, `canvas` and `resized`.
        """
        self.probabilities[index], self.tags[index] = prediction["probabilities"], item["tags"]
        self.canvases[prediction["canvas"]] += 1
        self.resized += [item["id"]] * prediction["resized"]

    def merge(self, other):
        """Adds the images of another Part. The sums are of integers, so that their order does not matter."""
        for mine, theirs in zip(self.scores, other.scores, strict=True):
            mine.merge(theirs)
        self.probabilities |= other.probabilities
        self.tags |= other.tags
        self.canvases += other.canvases
        self.resized += other.resized
        self.programs |= other.programs

    def classified(self):
        """Returns probabilities and tags, float32 [N, C] each, in the order of the images."""
        order = sorted(self.tags)
        return tuple(np.stack([rows[index] for index in order]) for rows in (self.probabilities, self.tags))

    def to_bytes(self):
        """Returns the content of a file."""
        order = list(self.tags)
        keys = list(self.scores[0].matrices)
        size = len(self.names)
        matrices = [score.matrices[key] for score in self.scores for key in keys]
        iou = [[score.by_image[key][index] for index in order] for score in self.scores for key in keys]
        record = {
            "keys": keys,
            "canvases": list(self.canvases.items()),
            "resized": self.resized,
            "programs": sorted(self.programs),
        }
        file = io.BytesIO()
        np.savez_compressed(
            file,
            indices=np.array(order, np.int64),
            probabilities=np.stack([self.probabilities[index] for index in order]),
            tags=np.stack([self.tags[index] for index in order]),
            matrices=np.array(matrices, np.int64).reshape(len(self.scores), len(keys), size, size),
            iou=np.array(iou, np.float64).reshape(len(self.scores), len(keys), len(order)),
            record=np.array(json.dumps(record)),
        )
        return file.getvalue()

    @classmethod
    def from_file(cls, path, names, count):
        """Reads what `to_bytes` gave. Raises UserError if the file is damaged."""
        part = cls(names, count)
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = dict(stored)
            record = json.loads(str(arrays["record"]))
            indices = arrays["indices"].tolist()
            for number, score in enumerate(part.scores):
                for place, key in enumerate(map(tuple, record["keys"])):
                    score.matrices[key] = arrays["matrices"][number, place]
                    score.by_image[key] = dict(
                        zip(indices, arrays["iou"][number, place].tolist(), strict=True)
                    )
            part.probabilities = dict(zip(indices, arrays["probabilities"], strict=True))
            part.tags = dict(zip(indices, arrays["tags"], strict=True))
            part.canvases.update({tuple(canvas): n for canvas, n in record["canvases"]})
            part.resized = record["resized"]
            part.programs = {(name, tuple(canvas), slots) for name, canvas, slots in record["programs"]}
        except Exception as error:  # A damaged archive can fail in any way.
            raise UserError(
                f"{path}: {type(error).__name__}: {error}; expected a part of an evaluation, delete it and run the "
                "same command again"
            ) from error
        return part


class PartFolder:
    """The parts of one evaluation. Several processes write to one folder; no file is written twice.

    Args:
      folder: pathlib.Path.
      settings: JSON-like dict of all that determines the results.
      names, count: see Part.
      seconds: a part is saved after so many.
    """

    def __init__(self, folder, settings, names, count=1, seconds=30.0):
        self._folder, self._settings = folder, json.loads(json.dumps(settings))
        self._names, self._count = names, count
        self._seconds, self._saved = seconds, time.monotonic()

    def open(self):
        """Makes the folder; parts of another evaluation in it are removed. Call it on one process."""
        path = self._folder / _SETTINGS
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        if found == self._settings:
            return
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        atomic_write(path, json.dumps(self._settings, indent=1) + "\n")

    def load(self):
        """Returns a Part of all images whose results were saved."""
        total = Part(self._names, self._count)
        for path in sorted(self._folder.glob("*.npz")):
            total.merge(Part.from_file(path, self._names, self._count))
        return total

    def is_due(self):
        """Returns whether it is time to save."""
        return time.monotonic() - self._saved >= self._seconds

    def save(self, part):
        """Saves a Part with at least one image. Returns an empty one to go on with."""
        first = min(part.tags)  # Each image is in one part only.
        atomic_write(self._folder / f"{first:08d}.npz", part.to_bytes())
        self._saved = time.monotonic()
        return Part(self._names, self._count)
