"""The experiment on where CAMs lie: sums and choices counted by hand."""

import numpy as np
import pytest

from experiments.cam_evidence import GRID, chain_scores, class_means, frame_sums, without_frame
from rml_jax.evaluation.metrics import confusion_matrix


def test_frame_of_one_pixel():
    cams = np.zeros((4, 5, 2), np.float32)
    cams[..., 0] = 0.5
    cams[1, 1, 0] = 1.0  # inside
    mask = np.zeros((4, 5), np.uint8)
    mask[:2, 1] = 1  # one pixel in the frame, one inside
    mask[3, 4] = 255
    sums = frame_sums(cams, mask, 1)
    # 20 pixels, 14 of them in the frame; the second class is not given.
    np.testing.assert_allclose(sums[0], [[7, 0], [14, 0], [1, 0]])
    np.testing.assert_allclose(sums[1], [[3.5, 0], [6, 0], [1, 0]])
    first, second = class_means(sums + sums)
    assert first == {
        "cam_in_frame": 0.5,
        "cam_inside": pytest.approx(3.5 / 6, abs=1e-4),
        "frame_of_cam": pytest.approx(7 / 10.5, abs=1e-4),
        "frame_of_mask": 0.5,
        "frame_of_area": 0.7,
    }
    assert np.isnan(list(second.values())).all()
    assert (without_frame(mask, 1) != 255).sum() == 6


def test_the_best_score_of_each_image_is_an_upper_bound():
    truth = np.array([0, 0, 1, 1], np.uint8)
    right, wrong = (
        confusion_matrix(np.array(found, np.uint8), truth, 2) for found in ([0, 0, 1, 1], [1, 1, 0, 0])
    )
    matrices = np.zeros((2, len(GRID), 2, 2), int)
    matrices[:] = wrong
    matrices[0, 3] = matrices[1, 5] = right
    contrasts = np.zeros((2, len(GRID)), np.float32)
    contrasts[0, 3] = contrasts[1, 5] = 1
    scores = chain_scores(matrices, matrices[:, :, ::-1], contrasts, np.array([False, True]), 3, fixed=0.21)
    # One image right and one wrong: each class has 2 pixels of 6 in its union.
    assert scores == {
        "fixed": 33.33,
        "best": 33.33,
        "best_each": 100.0,
        "best_inside": 100.0,
        "best_one_tag": 100.0,
        # The scores 0.2 and 0.3 have the right masks and the contrast; 0.1 is the first with both within 0.3.
        "contrast_5": 100.0,
        "contrast_10": 100.0,
        "contrast_20": 100.0,
        "unaided": 33.33,
        "unaided_5": 100.0,
        "unaided_10": 100.0,
        "unaided_20": 100.0,
        "fixed_score": 0.2,
        "best_score": 0.2,
        "contrast_5_score": 0.1,
        "contrast_10_score": 0.1,
        "contrast_20_score": 0.1,
        "unaided_score": 0.2,
    }
