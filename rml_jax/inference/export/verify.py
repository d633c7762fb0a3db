"""An exported model beside the live one: the same pictures, the largest differences."""

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from rml_jax.utils.errors import UserError

TOLERANCES = {"scores": 1e-3, "cams": 1e-3, "mask": 1e-3}
"""Greatest differences of an export: scores and CAMs are in 0..1; of masks, the share of the pixels."""


def verify(live, exported, sizes):
    """Compares an export with the live model on noise and on two photographs (scikit-learn's).

    Args:
      live: Predictor of stage `cam`.
      exported: function of uint8 [B, H, W, 3] giving a dict of scores [B, C], cams [B, H, W, C] and mask [B, H, W].
      sizes: (height, width) of the pictures to try.

    Returns:
      Dict from "scores", "cams" and "mask" to the largest difference.

    Raises:
      UserError: if one exceeds its tolerance or is not finite.
    """
    largest = dict.fromkeys(TOLERANCES, 0.0)
    for size in sizes:
        pictures = sample_pictures(size)
        found = {name: np.asarray(value) for name, value in exported(pictures).items()}
        for number, picture in enumerate(pictures):
            everything = live(picture, tags=live.classes)
            differences = {
                "scores": np.abs(found["scores"][number] - everything.scores).max(),
                "cams": np.abs(found["cams"][number] - everything.cams).max(),
                "mask": np.mean(found["mask"][number] != live(picture).mask),
            }
            largest = {name: max(largest[name], float(differences[name])) for name in largest}
    for name, difference in largest.items():
        # NaN fails, too.
        if not difference <= TOLERANCES[name]:
            raise UserError(
                f"the exported model's {name} differ from the live model's by {difference:.2g}, expected at most "
                f"{TOLERANCES[name]:g}; nothing was written"
            )
    return largest


def sample_pictures(size):
    """Noise and two photographs, uint8 [3, height, width, 3]."""
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    photographs = [
        np.asarray(Image.fromarray(photograph).resize(size[::-1], Image.Resampling.BILINEAR))
        for photograph in load_sample_images().images
    ]
    return np.stack([noise, *photographs])
