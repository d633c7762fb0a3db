"""What the logs and the reports show of a single image."""

from dataclasses import dataclass

import numpy as np

from rml_jax import visualize


@dataclass(frozen=True)
class Sample:
    """One image with everything the report shows of it.

    Attributes:
      id: name of the image.
      image: uint8 [H, W, 3].
      tags: ground-truth image tags, class names.
      predicted_tags: tags the model predicts.
      cam: float [H, W] in 0..1, the normalised class activation map of the strongest present class; None for masks
        from a folder.
      pseudo_label: uint8 [H, W]; 0 background, 1 + class index, 255 undecided; None likewise.
      predictions: stage (`cam`, `affinity`, `par`, ...) to its mask by the first of the protocols, uint8 [H, W].
      ground_truth: uint8 [H, W] with 255 where not annotated, or None where there is no annotation.
      affinity: float [h, w] in 0..1, how strongly the cells of the network's grid belong together with the one below
        `pixel`; None where not known.
      pixel: row and column in the image, where `cam` is greatest; None likewise.
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


def sample_images(sample: Sample) -> dict[str, np.ndarray]:
    """Draws the images of one sample, from left to right; also the row that TensorBoard shows.

    Args:
      sample: all its arrays have the same H and W.

    Returns:
      Caption to image, uint8 [H, W, 3]: the image, its CAM, the affinity of the CAM's strongest pixel, the pseudo
      label, each stage's prediction and, if there is one, the ground truth.

    Raises:
      ValueError: the sample's arrays differ in size.
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
