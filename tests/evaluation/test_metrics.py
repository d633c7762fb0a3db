"""Scores: hand-computed cases, scikit-learn as the reference, and properties."""

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rml_jax.evaluation import metrics

LABELS = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=2), elements=st.integers(0, 3))


def test_confusion_matrix_by_hand():
    annotation = np.array([[0, 0, 1], [1, 2, 255]], np.uint8)
    prediction = np.array([[0, 1, 1], [0, 2, 2]], np.uint8)
    matrix = metrics.confusion_matrix(prediction, annotation, 3)
    np.testing.assert_array_equal(matrix, [[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    assert matrix.dtype == np.int64


def test_confusion_matrix_equals_sklearn_without_the_ignored_pixels():
    rng = np.random.default_rng(0)
    annotation = rng.choice(np.array([0, 1, 2, 4, 255], np.uint8), (37, 41))
    prediction = rng.integers(0, 5, (37, 41), dtype=np.uint8)
    scored = annotation != 255
    expected = sklearn.metrics.confusion_matrix(annotation[scored], prediction[scored], labels=range(5))
    np.testing.assert_array_equal(metrics.confusion_matrix(prediction, annotation, 5), expected)


def test_confusion_matrix_does_not_overflow_with_many_classes():
    label = np.full((1,), 80, np.uint8)
    assert metrics.confusion_matrix(label, label, 81)[80, 80] == 1


def test_the_last_of_254_classes_is_scored_and_255_is_not():
    annotation = np.array([254, 254, 255, 0], np.uint8)
    matrix = metrics.confusion_matrix(np.array([254, 253, 254, 254], np.uint8), annotation, 255)
    assert matrix.sum() == 3
    assert (matrix[254, 254], matrix[254, 253], matrix[0, 254]) == (1, 1, 1)


@pytest.mark.parametrize("value", [3, 255])
def test_prediction_must_name_a_class_even_where_ignored(value):
    prediction, annotation = np.array([0, value], np.uint8), np.array([0, 255], np.uint8)
    with pytest.raises(ValueError, match=f"prediction holds the value {value}"):
        metrics.confusion_matrix(prediction, annotation, 3)


@pytest.mark.parametrize("value", [7, -1, 254])
def test_annotation_out_of_range_is_refused(value):
    with pytest.raises(ValueError, match=f"annotation holds the value {value}"):
        metrics.confusion_matrix(np.zeros(2, np.uint8), np.array([0, value]), 3)


def test_prediction_of_minus_1_is_refused_and_not_counted_as_background():
    with pytest.raises(ValueError, match="prediction holds the value -1"):
        metrics.confusion_matrix(np.array([0, -1]), np.zeros(2, np.uint8), 3)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="shape"):
        metrics.confusion_matrix(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), 2)


def test_iou_by_hand_counts_false_positives_of_absent_classes():
    # Class 2 is absent from the ground truth but predicted once, at the cost of class 1.
    matrix = np.array([[3, 1, 0], [0, 2, 1], [0, 0, 0]])
    np.testing.assert_allclose(metrics.iou_per_class(matrix), [3 / 4, 2 / 4, np.nan])
    assert metrics.mean_iou(matrix) == pytest.approx((3 / 4 + 2 / 4) / 2)


def test_class_never_predicted_scores_zero():
    assert metrics.mean_iou(np.array([[4, 0], [2, 0]])) == pytest.approx((4 / 6 + 0) / 2)


def test_mean_iou_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no annotated pixel"):
        metrics.mean_iou(np.zeros((3, 3), np.int64))


@given(LABELS)
def test_perfect_prediction_scores_one(annotation):
    assert metrics.mean_iou(metrics.confusion_matrix(annotation, annotation, 4)) == 1


@given(LABELS, st.randoms(use_true_random=False))
def test_sum_over_parts_in_any_order_equals_the_whole(annotation, random):
    prediction = np.roll(annotation, 1)
    pairs = list(zip(prediction.ravel(), annotation.ravel(), strict=True))
    random.shuffle(pairs)
    parts = sum(metrics.confusion_matrix(np.array([p]), np.array([a]), 4) for p, a in pairs)
    np.testing.assert_array_equal(parts, metrics.confusion_matrix(prediction, annotation, 4))


def test_classification_by_hand():
    tags = np.array([[1, 1, 0], [0, 1, 0]], np.float32)
    probabilities = np.array([[0.9, 0.2, 0.1], [0.6, 0.8, 0.3]])
    scores = metrics.classification_scores(probabilities, tags)
    # Image 1: one of two tags found, 2*1/(1+2). Image 2: one right, one wrong, 2*1/(2+1).
    assert scores["f1"] == pytest.approx(2 / 3)
    # Both present classes rank their positives first; class 3 has none and is left out.
    assert scores["map"] == pytest.approx(1)


def test_classification_equals_sklearn():
    rng = np.random.default_rng(1)
    tags = rng.random((60, 5)) < 0.2
    probabilities = np.clip(0.5 * tags + rng.normal(0.3, 0.2, tags.shape), 0, 1)
    scores = metrics.classification_scores(probabilities, tags)
    f1 = sklearn.metrics.f1_score(tags, probabilities > 0.5, average="samples", zero_division=1)
    average_precision = sklearn.metrics.average_precision_score(tags, probabilities, average="macro")
    assert scores == pytest.approx({"f1": f1, "map": average_precision})


def test_image_without_tags_counts_one_only_if_nothing_is_predicted():
    tags = np.array([[1, 0], [0, 0], [0, 0]], bool)
    probabilities = np.array([[0.9, 0.1], [0.5, 0.5], [0.1, 0.7]])
    assert metrics.classification_scores(probabilities, tags)["f1"] == pytest.approx((1 + 1 + 0) / 3)


def test_one_class_data_set_is_scored():
    tags, probabilities = np.array([[1], [0]], bool), np.array([[0.9], [0.2]])
    assert metrics.classification_scores(probabilities, tags) == {"f1": 1, "map": 1}


@pytest.mark.parametrize(
    ("probabilities", "tags", "message"),
    [
        (np.zeros((2, 3)), np.ones((3, 2)), "shape"),
        (np.zeros((2, 3)), np.zeros((2, 3)), "no image carries a tag"),
        (np.full((2, 1), np.nan), np.ones((2, 1)), "NaN"),
    ],
)
def test_classification_refuses_what_it_cannot_score(probabilities, tags, message):
    with pytest.raises(ValueError, match=message):
        metrics.classification_scores(probabilities, tags)
