"""Measures of how well CAMs and pseudo labels localise the objects of validation images."""

import numpy as np

from rml_jax.labels import BACKGROUND, IGNORE

SHARES = ("object_covered", "background_touched", "pseudo_label_accuracy", "pseudo_label_ignored")
"""Names of the measures that `localization` returns."""


def localization(samples, background):
    """Computes the coverage of the CAMs and the accuracy of the pseudo labels, over all pixels of some images.

    Args:
      samples: Samples with `cam` and `pseudo_label`.
      background: score above which a CAM counts as foreground (`config.eval.background.cam`).

    Returns:
      Dict of floats, fractions in 0..1:
        object_covered: fraction of the object pixels where the strongest tagged class's CAM exceeds `background`,
        background_touched: fraction of the background pixels where it does,
        pseudo_label_accuracy: fraction of the pixels with a pseudo label whose label is correct,
        pseudo_label_ignored: fraction of all pixels without a pseudo label.
      Pixels that the annotation ignores are left out. A fraction of no pixels is 0.
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
