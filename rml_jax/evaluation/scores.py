"""Scores of a set of masks, as sums of confusion matrices."""

import math

import numpy as np

from rml_jax.evaluation import metrics


class Scores:
    """Accumulates the confusion matrices of a set of masks, and each image's IoU.

    Args:
      names: the class names with "background" first.

    Attributes:
      images: number of scored images.
      classification: see `metrics.classification_scores`; None for masks from files.
      matrices: dict (protocol, stage) -> int64 [K, K].
      by_image: dict (protocol, stage) -> dict from the image's index to its `metrics.image_iou`, or to the value that
        was added for it.
    """

    def __init__(self, names):
        self.names = names
        self.images, self.classification = 0, None
        self.matrices, self.by_image = {}, {}

    def add(self, protocol, stage, index, mask, annotation):
        """Adds one image's mask, uint8 [H, W]."""
        self.add_matrix(protocol, stage, index, metrics.confusion_matrix(mask, annotation, len(self.names)))

    def add_matrix(self, protocol, stage, index, matrix):
        """Adds the confusion matrix, int64 [K, K], of one image's mask."""
        key = (protocol, stage)
        self.matrices[key] = self.matrices.get(key, 0) + matrix
        self.by_image.setdefault(key, {})[index] = metrics.image_iou(matrix)

    def add_value(self, protocol, stage, index, value):
        """Adds a value, float, that an image has instead of a confusion matrix."""
        key = (protocol, stage)
        self.matrices.setdefault(key, np.zeros((len(self.names), len(self.names)), np.int64))
        self.by_image.setdefault(key, {})[index] = float(value)

    def mean_of_images(self, key):
        """Returns the mean of `by_image` of one (protocol, stage), in any order of the images the same."""
        return math.fsum(self.by_image[key].values()) / len(self.by_image[key])

    def merge(self, other):
        """Adds the Scores of other images. The sums are of integers, hence exact in any order."""
        for key, matrix in other.matrices.items():
            self.matrices[key] = self.matrices.get(key, 0) + matrix
            self.by_image.setdefault(key, {}).update(other.by_image[key])

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
