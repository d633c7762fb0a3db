"""Coverage of CAMs and accuracy of pseudo labels, by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from rml_jax.evaluation.localization import localization


def sample(truth, cam, label):
    arrays = np.array(truth, np.uint8), np.array(cam, np.float32), np.array(label, np.uint8)
    return SimpleNamespace(**dict(zip(("ground_truth", "cam", "pseudo_label"), arrays, strict=True)))


def test_localization_by_hand():
    # Images of different sizes; the pixel whose truth is 255 counts nowhere.
    samples = [
        sample([[3, 3, 0, 0]], [[0.9, 0.2, 0.8, 0.1]], [[3, 255, 3, 0]]),
        sample([[5], [255]], [[0.4], [0.9]], [[4], [0]]),
    ]
    assert localization(samples, 0.3) == pytest.approx(
        {
            "object_covered": 2 / 3,
            "background_touched": 1 / 2,
            "pseudo_label_accuracy": 2 / 4,
            "pseudo_label_ignored": 1 / 5,
        }
    )


def test_shares_of_nothing_are_0():
    found = localization([sample([[0]], [[0.1]], [[255]])], 0.3)
    assert found["object_covered"] == found["pseudo_label_accuracy"] == 0
    assert found["pseudo_label_ignored"] == 1
