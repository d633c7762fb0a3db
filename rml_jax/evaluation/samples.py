"""Samples: single images with their maps and masks, for logs and reports."""

from dataclasses import dataclass

import numpy as np

from rml_jax import visualize


@dataclass(frozen=True)
class Sample:
    """One image with the maps and masks that the report shows.

    Attributes:
      id: name of the image.
      image: uint8 [H, W, 3].
      tags: ground-truth image tags, class names.
      predicted_tags: tags that the model predicts.
      cam: float [H, W] in 0..1, the maximum of the tagged classes' normalised CAMs; None for masks from a folder.
      pseudo_label: uint8 [H, W]; 0 background, 1..C classes, 255 undecided; None for masks from a folder.
      predictions: stage (`cam`, `affinity`, `par`, ...) -> its mask by the first of the protocols, uint8 [H, W].
      ground_truth: uint8 [H, W], 255 for pixels that are not annotated; None if there is no annotation.
      affinity: float [h, w] in 0..1, affinity of the cells of the network's grid to the cell at `pixel`, or None.
      pixel: row and column of the maximum of `cam`, or None.
      class_cams: label 1..C of each class that may be in the mask -> its normalised CAM, float [H, W] in 0..1; None
        where it is not wanted.
    """

    id: str
    image: np.ndarray
    tags: tuple[str, ...]
    predicted_tags: tuple[str, ...]
    cam: np.ndarray | None
    pseudo_label: np.ndarray | None
    predictions: dict[str, np.ndarray]
    ground_truth: np.ndarray | None
    affinity: np.ndarray | None = None
    pixel: tuple[int, int] | None = None
    class_cams: dict[int, np.ndarray] | None = None


def sample_images(sample: Sample) -> dict[str, np.ndarray]:
    """Renders the images of one sample for the report and TensorBoard, from left to right.

    Args:
      sample: all its arrays have the same H and W.

    Returns:
      Caption -> image, uint8 [H, W, 3]: the image, its CAM, the affinity to the CAM's strongest pixel, the pseudo
      label, each stage's prediction and, if there is one, the ground truth.

    Raises:
      ValueError: if the sample's arrays differ in size.
    """
    masks = {} if sample.pseudo_label is None else {"pseudo label": sample.pseudo_label}
    masks |= {f"prediction: {stage}": mask for stage, mask in sample.predictions.items()}
    if sample.ground_truth is not None:
        masks["ground truth"] = sample.ground_truth
    overlays = {caption: visualize.overlay(sample.image, mask) for caption, mask in masks.items()}
    heat = {} if sample.cam is None else {"CAM": visualize.heat_map(sample.image, sample.cam)}
    if sample.affinity is not None:
        heat["affinity"] = visualize.affinity_map(sample.image, sample.affinity, sample.pixel)
    return {"image": sample.image} | heat | overlays
