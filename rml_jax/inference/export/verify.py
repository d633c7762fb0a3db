"""Verification of an exported model: its largest differences from the live model on the same images."""

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from rml_jax.utils.errors import UserError

TOLERANCES = {"scores": 1e-3, "cams": 1e-3, "mask": 1e-3}
"""Largest accepted differences: absolute for scores and CAMs, which are in 0..1; fraction of pixels for masks."""


def verify(live, exported, sizes):
    """Compares an export with the live model on noise and on two photographs (scikit-learn's).

    Args:
      live: Predictor of stage `cam`.
      exported: function of uint8 [B, H, W, 3] giving a dict of scores [B, C], cams [B, H, W, C] and mask [B, H, W].
      sizes: (height, width) of the images.

    Returns:
      Dict from "scores", "cams" and "mask" to the largest difference.

    Raises:
      UserError: if one exceeds its tolerance or is not finite.
    """
    largest = dict.fromkeys(TOLERANCES, 0.0)
    for size in sizes:
        images = sample_images(size)
        found = {name: np.asarray(value) for name, value in exported(images).items()}
        for number, image in enumerate(images):
            everything = live(image, tags=live.classes)
            differences = {
                "scores": np.abs(found["scores"][number] - everything.scores).max(),
                "cams": np.abs(found["cams"][number] - everything.cams).max(),
                "mask": np.mean(found["mask"][number] != live(image).mask),
            }
            largest = {name: max(largest[name], float(differences[name])) for name in largest}
    for name, difference in largest.items():
        # Not `>`, so that NaN fails as well.
        if not difference <= TOLERANCES[name]:
            raise UserError(
                f"the exported model's {name} differ from the live model's by {difference:.2g}, expected at most "
                f"{TOLERANCES[name]:g}; nothing was written"
            )
    return largest


def sample_images(size):
    """Returns noise and two photographs, uint8 [3, height, width, 3]."""
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    photographs = [
        np.asarray(Image.fromarray(photograph).resize(size[::-1], Image.Resampling.BILINEAR))
        for photograph in load_sample_images().images
    ]
    return np.stack([noise, *photographs])
