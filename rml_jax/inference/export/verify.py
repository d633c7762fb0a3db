"""Verification of an exported model: its largest differences from the live model on the same images."""

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from rml_jax.stages.runner import TAG_THRESHOLD
from rml_jax.utils.errors import UserError
from rml_jax.utils.progress import Progress

TOLERANCES = {"scores": 1e-3, "cams": 1e-3, "mask": 1e-3}
"""Largest accepted differences: absolute for scores and CAMs, which are in 0..1; fraction of pixels for masks."""

_SAMPLES = 8  # of `sample_images`


def verify(live, exported, sizes):
    """Compares an export with the live model on `sample_images`.

    Masks are compared with the tags that the export predicts. A pixel where the two labels' scores differ by no more
    than CAMs may differ is not counted: there, rounding decides.

    Args:
      live: Predictor of stage `cam`.
      exported: function of uint8 [B, H, W, 3] giving a dict of scores [B, C], cams [B, H, W, C] and mask [B, H, W].
      sizes: (height, width) of the images to try.

    Returns:
      Dict from "scores", "cams" and "mask" to the largest difference.

    Raises:
      UserError: if one exceeds its tolerance or is not finite.
    """
    largest = dict.fromkeys(TOLERANCES, 0.0)
    progress, done = Progress("verify", len(sizes) * _SAMPLES, "images"), 0
    for size in sizes:
        images = sample_images(size)
        found = {name: np.asarray(value) for name, value in exported(images).items()}
        for number, image in enumerate(images):
            scores, cams, mask = (found[name][number] for name in ("scores", "cams", "mask"))
            everything = live(image, tags=live.classes)
            tags = scores > TAG_THRESHOLD
            expected = live(image, tags=[live.classes[c] for c in np.flatnonzero(tags)]).mask
            differences = {
                "scores": np.abs(scores - everything.scores).max(),
                "cams": np.abs(cams - everything.cams).max(),
                "mask": np.mean(
                    _differs(mask, expected, everything.cams * tags, live.settings()["background"])
                ),
            }
            # Unlike max, np.maximum keeps NaN.
            largest = {name: float(np.maximum(largest[name], differences[name])) for name in largest}
            done += 1
            progress.update(done)
    for name, difference in largest.items():
        # Not `>`, so that NaN fails as well.
        if not difference <= TOLERANCES[name]:
            raise UserError(
                f"the exported model's {name} differ from the live model's by {difference:.2g}, expected at most "
                f"{TOLERANCES[name]:g}; nothing was written"
            )
    return largest


def _differs(mask, expected, cams, background):
    """Returns where a label scores less than the expected one, bool [H, W]; cams are 0 for classes without tag."""
    scores = np.concatenate([np.full_like(cams[..., :1], background), cams], axis=-1)
    found, best = (
        np.take_along_axis(scores, labels[..., None].astype(int), -1) for labels in (mask, expected)
    )
    return (mask != expected) & (np.abs(best - found)[..., 0] > TOLERANCES["cams"])


def sample_images(size):
    """Returns noise, two photographs (scikit-learn's) and images of the least and the greatest values.

    The latter are all 0, all 255, a chequerboard of single pixels, a single pixel, and a border one pixel wide:
    converters err at such values, where nothing is wrong with the others.

    Args:
      size: (height, width).

    Returns:
      uint8 [8, height, width, 3].
    """
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    photographs = [
        np.asarray(Image.fromarray(photograph).resize(size[::-1], Image.Resampling.BILINEAR))
        for photograph in load_sample_images().images
    ]
    row, column = np.indices(size)
    last_row, last_column = size[0] - 1, size[1] - 1
    patterns = (
        np.zeros(size, bool),
        np.ones(size, bool),
        (row + column) % 2 == 1,
        (row == size[0] // 2) & (column == size[1] // 2),
        (row == 0) | (row == last_row) | (column == 0) | (column == last_column),
    )
    edges = [np.repeat(pattern[..., None] * np.uint8(255), 3, axis=2) for pattern in patterns]
    return np.stack([noise, *photographs, *edges])
