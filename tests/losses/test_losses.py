"""The losses: by hand, against loops, and their properties."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rml_jax import losses
from rml_jax.losses import Pair, apml, ciml, masked_mean, mfml
from tests.references import loops as references

IDENTITY = np.array([[[1.0, 0, 0], [0, 1, 0]]], np.float32)
FLIP = np.array([[[-1.0, 0, 0], [0, 1, 0]]], np.float32)

# Compiled as wholes: operation by operation, they take several times as long.
affinity_loss = jax.jit(losses.affinity_loss)
equivariance_distance = jax.jit(losses.equivariance_distance)
information = jax.jit(losses.mutual_information)
multilabel_soft_margin = jax.jit(losses.multilabel_soft_margin)
prototype_similarity = jax.jit(losses.prototype_similarity)
prototypes = jax.jit(losses.prototypes)
self_training = jax.jit(losses.self_training)
standardize = jax.jit(losses.standardize)


def floats(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def chances(*shape, seed=0):
    """Probabilities over the last axis."""
    powers = np.exp(2 * floats(*shape, seed=seed))
    return powers / powers.sum(axis=-1, keepdims=True)


def shift_right(width):
    """[1, N, N] for a grid of one row: every cell shows its left neighbour, the first one nothing."""
    return jnp.asarray(np.eye(width, k=-1)[None], jnp.float32)


def pair_of(original, warped, **fields):
    """A Pair of two outputs of the network, dicts, with the fields that a loss needs."""
    views = (SimpleNamespace(**view) for view in (original, warped))
    return Pair(*views, **dict.fromkeys(Pair._fields[2:]) | fields)


# --- masked_mean and L_cls ---


def test_masked_mean_by_hand():
    values = jnp.asarray([[1.0, 2.0, 6.0], [4.0, 8.0, 0.0]])
    assert masked_mean(values, jnp.asarray([[1, 0, 1], [0, 1, 0]], bool)) == pytest.approx(5)
    assert masked_mean(values, jnp.asarray([[True], [False]])) == pytest.approx(3), "the mask is broadcast"
    assert masked_mean(values, jnp.asarray([0.5, 0.0, 1.5])) == pytest.approx((0.5 + 9 + 2) / 4)
    assert masked_mean(values, jnp.zeros((2, 3), bool)) == 0


def test_soft_margin_equals_the_formula():
    logits, tags = 3 * floats(4, 5), np.random.default_rng(1).integers(0, 2, (4, 5))
    total = 0.0
    for score, tag in zip(logits.ravel().astype(float), tags.ravel(), strict=True):
        chance = 1 / (1 + math.exp(-score))
        total -= math.log(chance) if tag else math.log(1 - chance)
    assert multilabel_soft_margin(jnp.asarray(logits), jnp.asarray(tags)) == pytest.approx(
        total / 20, rel=1e-5
    )


def test_soft_margin_by_hand_and_far_out():
    assert multilabel_soft_margin(jnp.zeros((1, 3)), jnp.asarray([[1, 0, 1]])) == pytest.approx(math.log(2))
    far = jnp.asarray([[200.0, -200.0]])
    assert multilabel_soft_margin(far, jnp.asarray([[0, 1]])) == pytest.approx(200)
    assert multilabel_soft_margin(far, jnp.asarray([[1, 0]])) == pytest.approx(0)


def test_joined_soft_margin_by_hand():
    """The first image is whole. The second is joined with the first, of which the second part shows only padding."""
    logits = jnp.asarray([[[0.0, 3.0], [1.0, -2.0]], [[9.0, 9.0], [4.0, 5.0]]])
    tags = jnp.asarray([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
    joined, every = jnp.array([False, True]), jnp.ones((2, 2), bool)
    softplus = lambda x: math.log1p(math.exp(x))  # noqa: E731
    whole, absent, partner = softplus(0) + softplus(3), softplus(1) / 2, softplus(5) / 2
    loss = jax.jit(losses.joined_soft_margin)
    assert loss(logits, tags, every, joined) == pytest.approx((whole + absent + partner) / 4, rel=1e-6)
    hidden = every.at[1, 1].set(False)
    assert loss(logits, tags, hidden, joined) == pytest.approx((whole + absent) / 4, rel=1e-6)
    assert loss(logits, tags, every, jnp.zeros(2, bool)) == pytest.approx(
        float(multilabel_soft_margin(logits[0], tags[0])), rel=1e-6
    )


# --- Mutual information ---


def test_information_equals_loops():
    first, second = chances(2, 3, 4, 5, seed=0), chances(2, 3, 4, 3, seed=1)
    second[..., 0] += 2 * first[..., 0]
    second /= second.sum(axis=-1, keepdims=True)
    weight = np.random.default_rng(2).random((2, 3, 4))
    expected = references.mutual_information(first, second, weight)
    assert expected > 0.01
    assert information(first, second, weight) == pytest.approx(expected, abs=1e-6)


def test_information_by_hand():
    # Two fair coins that agree three times in four.
    first, second = np.eye(2)[[0, 0, 0, 0, 1, 1, 1, 1]], np.eye(2)[[0, 0, 0, 1, 1, 1, 1, 0]]
    expected = 2 * 3 / 8 * math.log(3 / 2) + 2 * 1 / 8 * math.log(1 / 2)
    assert information(first, second, np.ones(8, bool)) == pytest.approx(expected, abs=1e-6)


def test_information_of_independent_variables_is_0():
    # Every value of the one with every value of the other, equally often.
    first, second = np.repeat(np.eye(3), 4, axis=0), np.tile(np.eye(4), (3, 1))
    assert information(first, second, np.ones(12)) == pytest.approx(0, abs=1e-6)
    certain = np.tile(chances(5)[None], (12, 1))
    assert information(certain, chances(12, 4), np.ones(12)) == pytest.approx(0, abs=1e-6)


def test_information_of_identical_certain_variables_is_the_entropy():
    values = np.eye(3)[[0, 0, 0, 1, 1, 2]]
    entropy = -(1 / 2 * math.log(1 / 2) + 1 / 3 * math.log(1 / 3) + 1 / 6 * math.log(1 / 6))
    assert information(values, values, np.ones(6)) == pytest.approx(entropy, abs=1e-6)
    renamed = values[:, [2, 0, 1]]
    assert information(values, renamed, np.ones(6)) == pytest.approx(entropy, abs=1e-6)


def scores(values):
    return hnp.arrays(np.float32, (6, values), elements=st.floats(-30, 30, width=32))


WEIGHTS = hnp.arrays(np.float32, (6,), elements=st.sampled_from([0.0, 0.25, 1.0]))


@settings(max_examples=15)
@given(scores(4), scores(3), WEIGHTS)
def test_information_is_symmetric_and_bounded(first, second, weight):
    first, second = (np.asarray(jax.nn.softmax(scores)) for scores in (first, second))
    there, back = float(information(first, second, weight)), float(information(second, first, weight))
    assert there == pytest.approx(back, abs=1e-6)
    assert -1e-6 <= there <= math.log(3) + 1e-6, "the smaller number of values bounds it"
    assert there == pytest.approx(references.mutual_information(first, second, weight), abs=2e-6)


@settings(max_examples=15)
@given(hnp.arrays(np.int64, 12, elements=st.integers(0, 3)))
def test_information_of_labels_about_themselves_is_their_entropy_and_about_a_constant_0(labels):
    values = np.eye(4)[labels]
    shares = np.bincount(labels) / 12
    entropy = -sum(share * math.log(share) for share in shares if share > 0)
    assert information(values, values, np.ones(12)) == pytest.approx(entropy, abs=1e-6)
    assert information(values, np.eye(4)[[2] * 12], np.ones(12)) == pytest.approx(0, abs=1e-6)


def test_information_excludes_samples_of_no_weight():
    first, second = chances(6, 3, seed=3), chances(6, 3, seed=4)
    second[3:] = np.eye(3)[[0, 1, 2]]
    first[3:] = np.eye(3)[[0, 1, 2]]
    weight = np.array([1, 1, 1, 0, 0, 0])
    alone = information(first[:3], second[:3], np.ones(3))
    assert information(first, second, weight) == pytest.approx(float(alone), abs=1e-6)
    assert information(first, second, weight.astype(bool)) == pytest.approx(float(alone), abs=1e-6)
    assert information(first, second, np.ones(6)) > alone + 0.03
    assert information(first, second, np.zeros(6)) == 0


def test_information_has_a_finite_gradient_at_zeros():
    values = jnp.asarray(np.eye(3)[[0, 0, 1]], jnp.float32)  # the third value never occurs
    gradient = jax.grad(lambda p, q: information(p, q, jnp.ones(3)), argnums=(0, 1))
    assert all(np.isfinite(g).all() for g in jax.jit(gradient)(values, values))


def test_information_counts_a_million_samples_exactly():
    agree = 600_000
    first = np.zeros((1_000_000, 2), np.float32)
    first[::2, 0] = first[1::2, 1] = 1
    second = first.copy()
    second[agree:] = second[agree:, ::-1]
    share = agree / 1_000_000
    expected = math.log(2) + share * math.log(share) + (1 - share) * math.log(1 - share)
    assert information(first, second, np.ones(1_000_000)) == pytest.approx(expected, abs=1e-5)


# --- L_CIML ---


def test_equivariance_by_hand():
    # One row of four cells, moved right by one: the first cell shows nothing.
    cams = jnp.asarray([0.1, 0.2, 0.3, 0.4]).reshape(1, 1, 4, 1)
    warped = jnp.asarray([9.0, 0.1, 0.5, 0.2]).reshape(1, 1, 4, 1)
    valid = jnp.asarray([[[False, True, True, True]]])
    tags = jnp.ones((1, 1))
    expected = (abs(0.1 - 0.1) + abs(0.2 - 0.5) + abs(0.3 - 0.2)) / 3
    assert equivariance_distance(cams, warped, tags, shift_right(4), valid) == pytest.approx(
        expected, abs=1e-6
    )


def test_equivariance_ignores_invalid_cells_and_untagged_classes():
    cams = np.random.default_rng(0).random((2, 1, 4, 3)).astype(np.float32)
    matrix = jnp.tile(shift_right(4), (2, 1, 1))
    valid = np.tile([[[False, True, True, True]]], (2, 1, 1))
    tags = np.array([[1, 0, 1], [0, 1, 0]])
    warped = np.random.default_rng(1).random((2, 1, 4, 3)).astype(np.float32)  # noise but for what counts
    for b, c in ((0, 0), (0, 2), (1, 1)):
        warped[b, 0, 1:, c] = cams[b, 0, :-1, c]

    def distance(warped):
        return float(equivariance_distance(jnp.asarray(cams), jnp.asarray(warped), tags, matrix, valid))

    assert distance(warped) == pytest.approx(0, abs=1e-6)
    warped[1, 0, 2, 1] += 0.9
    assert distance(warped) == pytest.approx(0.9 / 9, abs=1e-6), "nine cells count: 3 cells of 3 tagged maps"


def test_prototypes_by_hand():
    # Two images of two cells. Class 0 is tagged in both, class 1 in the second only, class 2 in none.
    cams = jnp.asarray([[[1.0, 1.0, 1.0], [0.0, 0.0, 1.0]], [[0.5, 0.0, 1.0], [0.0, 1.0, 1.0]]])[:, None]
    features = jnp.asarray([[[3.0, 0.0], [7.0, 7.0]], [[0.0, 8.0], [0.0, 2.0]]])[:, None]
    result = prototypes(cams, features, jnp.asarray([[1, 0, 0], [1, 1, 0]]))
    np.testing.assert_allclose(result, [[0.6, 0.8], [0, 1], [0, 0]], atol=1e-6)


def test_prototype_similarity_by_hand():
    s = math.sqrt(0.5)
    vectors = jnp.asarray([[1.0, 0.0], [s, s], [0.0, 1.0]])
    pairs = {(0, 1): s, (0, 2): 0.0, (1, 2): s}
    for (i, j), cosine in pairs.items():
        tags = np.zeros((2, 3))
        tags[0, i] = tags[1, j] = 1
        assert prototype_similarity(vectors, tags) == pytest.approx(cosine, abs=1e-6)
    assert prototype_similarity(vectors, jnp.ones((1, 3))) == pytest.approx(2 * s / 3, abs=1e-6)
    assert prototype_similarity(jnp.asarray([[0.6, 0.8]] * 2), jnp.ones((1, 2))) == pytest.approx(1)


def test_prototype_similarity_needs_two_classes_present():
    vectors = jnp.asarray([[1.0, 0.0], [1.0, 0.0]])
    assert prototype_similarity(vectors, jnp.asarray([[1, 0], [1, 0]])) == 0
    assert prototype_similarity(vectors, jnp.zeros((2, 2))) == 0


def test_prototypes_do_not_depend_on_the_strength_of_the_map():
    cams, features = np.random.default_rng(0).random((1, 2, 2, 2)).astype(np.float32), floats(1, 2, 2, 3)
    tags = jnp.ones((1, 2))
    result = prototypes(jnp.asarray(cams), jnp.asarray(features), tags)
    np.testing.assert_allclose(
        prototypes(jnp.asarray(0.1 * cams), jnp.asarray(features), tags), result, atol=1e-5
    )
    np.testing.assert_allclose(np.linalg.norm(result, axis=-1), [1, 1], atol=1e-5)


def ciml_views():
    return [
        {
            "cam_logits": jnp.asarray(floats(2, 1, 4, 3, seed=i)),
            "features": jnp.asarray(floats(2, 1, 4, 5, seed=10 + i)),
        }
        for i in range(2)
    ]


def test_ciml_is_the_distance_of_the_cams_plus_alpha_times_the_likeness_of_both_views():
    views = ciml_views()
    tags, valid = np.array([[1, 1, 0], [0, 1, 0]]), np.array([[[0, 1, 1, 1]]] * 2, bool)
    matrix = np.tile(shift_right(4), (2, 1, 1))
    compiled = jax.jit(lambda views: ciml(pair_of(*views, tags=tags, matrix=matrix, valid=valid), 0.3))
    loss, parts = compiled(views)
    arrays = (tuple(np.asarray(view[name]) for name in ("cam_logits", "features")) for view in views)
    expected, distance, likeness = references.ciml(*arrays, tags, matrix, valid, 0.3)
    assert parts["equivariance"] == pytest.approx(distance, abs=1e-5)
    assert parts["prototype_similarity"] == pytest.approx(likeness, abs=1e-5)
    assert loss == pytest.approx(expected, abs=1e-5)


# --- L_MFML ---


def test_standardize_by_hand():
    context = jnp.asarray([1.0, 3.0, 5.0, 99.0]).reshape(1, 1, 4, 1)
    real = jnp.asarray([[[True, True, True, False]]])
    result = np.asarray(standardize(context, real))[0, 0, :3, 0]
    np.testing.assert_allclose(result, np.array([-2, 0, 2]) / math.sqrt(8 / 3), atol=1e-4)


def test_standardized_maps_have_mean_0_and_deviation_1_over_the_real_pixels():
    context = floats(2, 5, 6, 3) * [1, 10, 0.5] + [0, 50, -3]
    real = np.zeros((2, 5, 6), bool)
    real[0, 1:, :4] = real[1, :, 2:] = True
    result = np.asarray(standardize(jnp.asarray(context, jnp.float32), jnp.asarray(real)))
    for b in range(2):
        np.testing.assert_allclose(result[b][real[b]].mean(axis=0), np.zeros(3), atol=1e-5)
        np.testing.assert_allclose(result[b][real[b]].std(axis=0), np.ones(3), atol=1e-3)
    padded = np.where(real[..., None], context, 1e3)
    again = np.asarray(standardize(jnp.asarray(padded, jnp.float32), jnp.asarray(real)))
    np.testing.assert_allclose(again[real], result[real], atol=1e-5)


def test_standardized_constant_is_0_with_a_finite_gradient():
    real = jnp.ones((1, 3, 3), bool)
    constant = jnp.full((1, 3, 3, 2), 7.25)
    np.testing.assert_allclose(standardize(constant, real), np.zeros((1, 3, 3, 2)), atol=1e-5)
    weight = jnp.asarray(floats(1, 3, 3, 2))
    gradient = jax.jit(jax.grad(lambda c: jnp.sum(weight * standardize(c, real))))(constant)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


@jax.jit
def mfml_of(first, second, theta, valid, beta1):
    views = ({"context": jnp.asarray(context)} for context in (first, second))
    return mfml(pair_of(*views, theta=jnp.asarray(theta), valid_context=jnp.asarray(valid)), beta1)


def test_mfml_of_aligned_views_is_the_information_alone():
    context = floats(1, 4, 6, 3)
    everywhere = jnp.ones((1, 4, 6), bool)
    # Gain and offset of a channel are lost in the standardisation.
    mirrored = context[:, :, ::-1] * [2, 1, 5] + [0, 3, -1]
    loss, parts = mfml_of(context, mirrored, FLIP, everywhere, 0.5)
    assert parts["alignment"] == pytest.approx(0, abs=1e-4)
    standard = (context - context.mean((1, 2))) / context.std((1, 2))
    kinds = np.exp(standard) / np.exp(standard).sum(axis=-1, keepdims=True)
    expected = references.mutual_information(kinds, kinds, np.ones(24))
    assert expected > 0.02
    assert parts["information_context"] == pytest.approx(expected, abs=1e-4)
    assert loss == pytest.approx(0.5 * expected, abs=1e-4)


def test_mfml_punishes_misaligned_views_where_valid():
    context = floats(1, 4, 6, 2)
    everywhere = jnp.ones((1, 4, 6), bool)
    _, parts = mfml_of(context, context, FLIP, everywhere, 1.0)
    standard = (context - context.mean((1, 2))) / context.std((1, 2))
    expected = np.abs(standard[:, :, ::-1] - standard).mean()
    assert parts["alignment"] == pytest.approx(expected, abs=1e-4)


def test_mfml_does_not_see_what_is_not_valid():
    context = floats(1, 4, 6, 2)
    valid = np.zeros((1, 4, 6), bool)
    valid[:, 1:3, 2:] = True
    noisy = np.where(valid[..., None], context, 50 * floats(1, 4, 6, 2, seed=1))
    loss, parts = mfml_of(context, context, IDENTITY, valid, 1.0)
    noisy_loss, _ = mfml_of(noisy, noisy, IDENTITY, valid, 1.0)
    assert parts["alignment"] == pytest.approx(0, abs=1e-4)
    assert noisy_loss == pytest.approx(float(loss), abs=1e-4)


# --- L_APML ---


def test_affinity_loss_by_hand():
    affinity = jnp.asarray([[[0.9, 0.2], [0.4, 0.7]]])
    labels = jnp.asarray([[[1, 0], [255, 1]]], jnp.uint8)
    assert affinity_loss(affinity, labels) == pytest.approx(0.5 * ((0.1 + 0.3) / 2 + 0.2), abs=1e-6)


def test_affinity_loss_with_an_empty_side():
    affinity = jnp.asarray([[[0.9, 0.2], [0.4, 0.7]]])
    positive = jnp.asarray([[[1, 255], [1, 255]]], jnp.uint8)
    assert affinity_loss(affinity, positive) == pytest.approx(0.5 * (0.1 + 0.6) / 2, abs=1e-6)
    negative = jnp.asarray([[[255, 0], [255, 255]]], jnp.uint8)
    assert affinity_loss(affinity, negative) == pytest.approx(0.5 * 0.2, abs=1e-6)
    assert affinity_loss(affinity, jnp.full((1, 2, 2), 255, jnp.uint8)) == 0


def apml_case(seed=0):
    """Affinities of a 2x2 grid that go with their labels, more or less; A mixes cells."""
    labels = np.array([[1, 0, 1, 255], [0, 1, 0, 1], [1, 0, 1, 0], [255, 1, 0, 1]], np.uint8)
    warped_labels = np.array([[1, 1, 0, 0], [1, 1, 255, 0], [0, 255, 1, 1], [0, 0, 1, 1]], np.uint8)
    logits, warped_logits = (
        3.0 * (truth == 1) - 1 + floats(4, 4, seed=seed + i)
        for i, truth in enumerate((labels, warped_labels))
    )
    matrix = np.array([[0, 1, 0, 0], [0.75, 0.25, 0, 0], [0, 0.5, 0, 0.5], [0, 0, 0.5, 0]], np.float32)
    valid = np.array([True, True, True, False])  # the last cell looks half outside
    return logits + logits.T, warped_logits + warped_logits.T, labels, warped_labels, matrix, valid


@jax.jit
def run_apml(logits, warped_logits, labels, warped_labels, matrix, valid, beta2, affinity_weight=1.0):
    views = ({"affinity_logits": jnp.asarray(a, jnp.float32)[None]} for a in (logits, warped_logits))
    labels, warped_labels, matrix = (jnp.asarray(a)[None] for a in (labels, warped_labels, matrix))
    fields = {"matrix": matrix, "valid": jnp.asarray(valid).reshape(1, 2, 2)}
    fields |= {"affinity_labels": labels, "warped_affinity_labels": warped_labels}
    return apml(pair_of(*views, **fields), beta2, affinity_weight)


@pytest.mark.parametrize("seed", [0, 1])
def test_apml_equals_loops(seed):
    case = apml_case(seed)
    loss, contrast, with_label, shared = references.apml(*(a[None] for a in case), 0.7)
    assert min(contrast, with_label, shared) > 0.01
    result, parts = run_apml(*case, 0.7)
    assert parts["affinity"] == pytest.approx(contrast, abs=1e-5)
    assert parts["information_affinity_label"] == pytest.approx(with_label, abs=1e-5)
    assert parts["information_affinity_pair"] == pytest.approx(shared, abs=1e-5)
    assert result == pytest.approx(loss, abs=1e-5)


def test_apml_without_the_affinity_loss_is_the_information_alone():
    case = apml_case()
    loss, parts = run_apml(*case, 0.7, affinity_weight=0.0)
    information = parts["information_affinity_label"] - 2 * parts["information_affinity_pair"]
    assert parts["affinity"] > 0.01
    assert loss == pytest.approx(float(-0.7 * information), abs=1e-6)


def test_apml_rewards_information_on_the_labels_and_punishes_shared_information():
    logits, warped_logits, labels, warped_labels, matrix, valid = apml_case()
    # Certain and right in both views: with_label is then the labels' entropies.
    right, warped_right = (np.where(truth == 1, 50.0, -50.0) for truth in (labels, warped_labels))
    _, parts = run_apml(right, warped_right, labels, warped_labels, matrix, valid, 1.0)

    def entropy(truth):
        share = (truth == 1).sum() / (truth != 255).sum()
        return -share * math.log(share) - (1 - share) * math.log(1 - share)

    assert parts["information_affinity_label"] == pytest.approx(
        entropy(labels) + entropy(warped_labels), abs=1e-5
    )
    # No cell of the transformed view shows the original: nothing is shared, and knowing the labels lowers the loss.
    nowhere = np.zeros(4, bool)
    loss, parts = run_apml(logits, warped_logits, labels, warped_labels, matrix, nowhere, 1.0)
    without, _ = run_apml(logits, warped_logits, labels, warped_labels, matrix, nowhere, 0.0)
    assert parts["information_affinity_pair"] == 0
    assert loss < without - 0.1


def test_apml_compares_only_valid_pairs_labelled_in_the_transformed_view():
    logits, warped_logits, labels, warped_labels, matrix, valid = apml_case()
    _, parts = run_apml(logits, warped_logits, labels, warped_labels, matrix, valid, 1.0)
    changed = warped_logits.copy()
    changed[3, :] = changed[:, 3] = 9.0  # not valid
    changed[1, 2] = changed[2, 1] = 9.0  # not labelled
    _, same = run_apml(logits, changed, labels, warped_labels, matrix, valid, 1.0)
    assert same["information_affinity_pair"] == pytest.approx(
        float(parts["information_affinity_pair"]), abs=1e-6
    )
    changed[0, 1] += 3.0
    _, other = run_apml(logits, changed, labels, warped_labels, matrix, valid, 1.0)
    assert abs(other["information_affinity_pair"] - parts["information_affinity_pair"]) > 5e-4


# --- All of them ---


def every_loss(arrays, tags, valid, labels):
    """L_CIML, L_MFML and L_APML of two images on 2x2 cells; A mirrors the context and leaves cells in place."""
    ciml_views = ({"cam_logits": logits, "features": features} for logits, features in arrays["ciml"])
    apml_views = ({"affinity_logits": logits} for logits in arrays["apml"])
    matrix = jnp.tile(jnp.eye(4), (2, 1, 1))
    apml_pair = pair_of(
        *apml_views, affinity_labels=labels, warped_affinity_labels=labels, matrix=matrix, valid=valid
    )
    return jnp.stack(
        [
            ciml(pair_of(*ciml_views, tags=tags, matrix=matrix, valid=valid), 0.1)[0],
            mfml_of(*arrays["mfml"], jnp.tile(jnp.asarray(FLIP), (2, 1, 1)), valid, 1.0)[0],
            apml(apml_pair, 1.0)[0],
        ]
    )


@jax.jit
def values_and_gradients(*args):
    return every_loss(*args), jax.jacrev(every_loss)(*args)


def every_array(scale=1.0):
    return jax.tree.map(
        lambda a: jnp.asarray(scale * a),
        {
            "ciml": [(floats(2, 2, 2, 3, seed=i), floats(2, 2, 2, 5, seed=i + 2)) for i in (0, 1)],
            "mfml": [floats(2, 2, 2, 4, seed=i) for i in (4, 5)],
            "apml": [floats(2, 4, 4, seed=i) for i in (6, 7)],
        },
    )


@pytest.mark.parametrize("scale", [1.0, 0.0, 100.0])
def test_where_nothing_counts_every_loss_is_0_with_gradient_0(scale):
    values, gradients = values_and_gradients(
        every_array(scale), jnp.zeros((2, 3)), jnp.zeros((2, 2, 2), bool), jnp.full((2, 4, 4), 255, jnp.uint8)
    )
    np.testing.assert_array_equal(values, np.zeros(3))
    for gradient in jax.tree.leaves(gradients):
        np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


@pytest.mark.parametrize("scale", [1.0, 0.0, 100.0])
def test_every_loss_is_finite_with_finite_gradients(scale):
    labels = jnp.asarray(np.random.default_rng(0).choice([0, 1, 255], (2, 4, 4)), jnp.uint8)
    values, gradients = values_and_gradients(
        every_array(scale), jnp.asarray([[1.0, 1, 0], [0, 0, 1]]), jnp.ones((2, 2, 2), bool), labels
    )
    assert np.isfinite(values).all()
    assert all(np.isfinite(gradient).all() for gradient in jax.tree.leaves(gradients))


def test_every_loss_trains_both_views():
    labels = jnp.asarray(np.random.default_rng(0).choice([0, 1, 255], (2, 4, 4)), jnp.uint8)
    _, gradients = values_and_gradients(
        every_array(), jnp.asarray([[1.0, 1, 0], [0, 0, 1]]), jnp.ones((2, 2, 2), bool), labels
    )
    for number, name in enumerate(("ciml", "mfml", "apml")):
        for view in range(2):
            for gradient in jax.tree.leaves(gradients[name][view]):
                assert np.abs(gradient[number]).max() > 1e-4, (name, view)


# --- L_self ---


def test_self_training_equals_loops():
    rng = np.random.default_rng(0)
    logits, tags = 2 * floats(3, 4, 5, 6), rng.integers(0, 2, (3, 6))
    tags[:, :2] = 1
    labels = rng.choice([0, 0, 1, 2, 255], (3, 4, 5))
    expected = references.self_training(logits, labels, tags)
    assert self_training(*map(jnp.asarray, (logits, labels, tags))) == pytest.approx(expected, rel=1e-5)


def test_self_training_by_hand():
    # One tagged class of two; a cell of it, one of the background, one ignored. All scores are even: log 2 each.
    labels, tags = jnp.asarray([[[1, 0, 255]]]), jnp.asarray([[1.0, 0.0]])
    assert self_training(jnp.zeros((1, 1, 3, 2)), labels, tags) == pytest.approx(math.log(2))
    # Right about both cells, whatever the ignored cell and the class that is not tagged say.
    sure = jnp.asarray([[[[50.0, 9.0], [-50.0, 9.0], [9.0, -9.0]]]])
    assert self_training(sure, labels, tags) == pytest.approx(0)
    assert self_training(-sure, labels, tags) == pytest.approx(50)
    # One side alone counts half; none, nothing.
    assert self_training(-sure, jnp.asarray([[[1, 255, 255]]]), tags) == pytest.approx(25)
    assert self_training(-sure, jnp.full((1, 1, 3), 255), tags) == 0


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int32])
@pytest.mark.parametrize("num_classes", [2, 254])
def test_self_training_learns_nothing_from_ignored_cells_and_no_class_from_the_background(dtype, num_classes):
    """255 as a label gives NaN in optax; -1, which the background becomes when classes are counted from 0, the last
    class. Unsigned, it wraps to 255."""
    labels, tags = jnp.asarray([[[0, 255]]], dtype), jnp.ones((1, num_classes))
    logits = jnp.zeros((1, 1, 2, num_classes))
    loss, gradient = jax.jit(jax.value_and_grad(self_training))(logits, labels, tags)
    assert loss == pytest.approx(0.5 * math.log(2), rel=1e-5)
    assert (gradient[0, 0, 0] > 0).all(), "all classes become weaker"
    np.testing.assert_array_equal(gradient[0, 0, 1], 0)


def test_self_training_gradient_is_finite_far_out_and_pulls_the_right_way():
    labels, tags = jnp.asarray([[[1, 0, 255]]]), jnp.asarray([[1.0, 0.0]])
    gradient_of = jax.jit(jax.grad(self_training))
    gradient = gradient_of(jnp.full((1, 1, 3, 2), 1e4), labels, tags)[0, 0]
    np.testing.assert_allclose(gradient, [[0, 0], [0.5, 0], [0, 0]], atol=1e-6)
    gradient = gradient_of(jnp.zeros((1, 1, 3, 2)), labels, tags)[0, 0]
    np.testing.assert_allclose(gradient, [[-0.25, 0], [0.25, 0], [0, 0]], atol=1e-6)
