"""Scores of masks and of image tags, in NumPy (docs/method.md, Metrics).

Masks are scored by one confusion matrix over the whole set: sum the matrices of the images, then call `mean_iou`
once. A mean of per-image scores differs and is not computed here.
"""

import numpy as np

from rml_jax.labels import IGNORE
from rml_jax.utils.errors import UserError


def confusion_matrix(prediction: np.ndarray, annotation: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts pixels by annotated and predicted class.

    Args:
      prediction: uint8 [...], the predicted class of each pixel, in 0..K-1 (0 is background). 255 is an error even
        where the annotation is ignored.
      annotation: uint8 [...], the true class in 0..K-1, or 255 for pixels that are not scored.
      num_classes: K, with the background.

    Returns:
      int64 [K, K], rows the annotated class, columns the predicted one. Matrices of several images can be summed.

    Raises:
      ValueError: if the shapes differ, or a value is outside the ranges above.
    """
    if prediction.shape != annotation.shape:
        raise ValueError(f"prediction has shape {prediction.shape}, annotation {annotation.shape}")
    scored = annotation != IGNORE
    truth = annotation[scored]
    _check_range("prediction", prediction, num_classes)
    _check_range("annotation", truth, num_classes)
    cells = truth.astype(np.int64) * num_classes + prediction[scored]
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def _check_range(name: str, labels: np.ndarray, num_classes: int) -> None:
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if outside.size:
        raise ValueError(f"{name} holds the value {outside[0]}, expected 0..{num_classes - 1}")


def iou_per_class(matrix: np.ndarray) -> np.ndarray:
    """Computes the intersection over union of each class.

    Args:
      matrix: integers [K, K] from `confusion_matrix`, summed over the set.

    Returns:
      float64 [K], each in 0..1, and NaN for a class that is absent from the ground truth. Pixels wrongly predicted as
      such a class still lower the score of their true class.
    """
    intersection = np.diagonal(matrix)
    truth = matrix.sum(axis=1)
    union = truth + matrix.sum(axis=0) - intersection
    return np.where(truth > 0, intersection / np.maximum(union, 1), np.nan)


def mean_iou(matrix: np.ndarray) -> float:
    """Computes the mean intersection over union over the classes present in the ground truth.

    Args:
      matrix: integers [K, K] from `confusion_matrix`, summed over the set.

    Returns:
      The mean, in 0..1.

    Raises:
      UserError: if the matrix counts no pixels, so that there is no class to score.
    """
    if not matrix.any():
        raise UserError("the split holds no annotated pixel to score: expected masks that are not all 255")
    return float(np.nanmean(iou_per_class(matrix)))


def classification_scores(probabilities: np.ndarray, tags: np.ndarray) -> dict[str, float]:
    """Computes F1 and mean average precision of the predicted image tags.

    F1 is computed per image at probability > 0.5, the threshold of the `predicted` protocol, and averaged over the
    images, as in AFA's code (scikit-learn's `average="samples"`). An image without tags for which none is predicted
    counts 1; if only one of the two is empty, it counts 0.

    mAP is the mean of scikit-learn's average precision over the classes with at least one positive image, since
    recall is undefined for the others.

    Args:
      probabilities: float [N, C] in 0..1, the sigmoid of the class logits, without background.
      tags: bool or 0/1 [N, C], the ground-truth image tags.

    Returns:
      {"f1": ..., "map": ...}, both in 0..1.

    Raises:
      ValueError: if the shapes differ, or a probability is not finite.
      UserError: if no image has a tag, so that mAP is undefined.
    """
    if probabilities.shape != tags.shape:
        raise ValueError(f"probabilities have shape {probabilities.shape}, tags {tags.shape}")
    tags = tags.astype(bool)
    # Imported here, since it takes seconds and training does not use it.
    from sklearn.metrics import average_precision_score

    present = tags.any(axis=0)
    if not present.any():
        raise UserError("no image carries a tag in the split: expected at least one, to score the tags by")
    precisions = [average_precision_score(tags[:, c], probabilities[:, c]) for c in np.flatnonzero(present)]
    return {"f1": _samples_f1(probabilities > 0.5, tags), "map": float(np.mean(precisions))}


def _samples_f1(predicted: np.ndarray, tags: np.ndarray) -> float:
    # Implemented here because scikit-learn rejects average="samples" for a data set of one class.
    hits = (predicted & tags).sum(axis=1)
    total = predicted.sum(axis=1) + tags.sum(axis=1)
    return float(np.where(total > 0, 2 * hits / np.maximum(total, 1), 1.0).mean())


def image_iou(matrix: np.ndarray) -> float:
    """Computes the IoU of one image, for ranking images only; the mean over images is not the data set's mIoU.

    Args:
      matrix: integers [K, K] from `confusion_matrix` of that image.

    Returns:
      Mean IoU over the classes in its annotation or its prediction, in 0..1; NaN if no pixel is scored.
    """
    union = matrix.sum(axis=1) + matrix.sum(axis=0) - np.diagonal(matrix)
    found = union > 0
    return float(np.mean(np.diagonal(matrix)[found] / union[found])) if found.any() else float("nan")
