"""How well CAMs and pseudo labels lie on the objects of validation images."""

import numpy as np

from rml_jax.labels import BACKGROUND, IGNORE

SHARES = ("object_covered", "background_touched", "pseudo_label_accuracy", "pseudo_label_ignored")
"""What `localization` measures."""


def localization(samples, background):
    """Computes the coverage of the CAMs and the accuracy of the pseudo labels, over all pixels of some images.

    Args:
      samples: Samples with `cam` and `pseudo_label`.
      background: score above which a CAM counts as foreground (`config.eval.background.cam`).

    Returns:
      Dict of floats, shares in 0..1:
        object_covered: of the object pixels, those where the strongest given class's CAM exceeds `background`,
        background_touched: of the background pixels, those where it does,
        pseudo_label_accuracy: of the pixels with a pseudo label, those with the right one,
        pseudo_label_ignored: of all pixels, those without one.
      Pixels that the annotation ignores don't count. A share of nothing is 0.
    """
    truth, cam, label = (
        np.concatenate([np.ravel(getattr(sample, name)) for sample in samples])
        for name in ("ground_truth", "cam", "pseudo_label")
    )
    known = truth != IGNORE
    truth, active, label = truth[known], cam[known] > background, label[known]
    labelled = label != IGNORE
    found = (
        active[truth != BACKGROUND],
        active[truth == BACKGROUND],
        (label == truth)[labelled],
        ~labelled,
    )
    return {
        name: float(values.mean()) if len(values) else 0.0 for name, values in zip(SHARES, found, strict=True)
    }
