"""The train step on a small network: what its gradient reaches, when it compiles, what it ignores."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rml_jax.models import BACKBONES, RML, RMLConfig
from rml_jax.ops import warp
from rml_jax.ops.join import sample_parts
from rml_jax.ops.normalize import IMAGENET_MEAN, IMAGENET_STD, normalize
from rml_jax.training.optimizer import parameter_groups
from rml_jax.training.step import (
    TrainState,
    both_views,
    classification_loss,
    image_cells,
    make_pseudo_labels,
    make_train_step,
    mean_over_parts,
    pair_losses,
)
from rml_jax.utils.trees import named_leaves
from tests.references.networks import SMALL_BACKBONE
from tests.training.settings import CONFIG

BATCH, SIZE, CLASSES = 2, 32, 3


@pytest.fixture(scope="module")
def network(build):
    config = RMLConfig(BACKBONES["mini"](drop_path_rate=0.1), CLASSES)
    return nnx.split(build(lambda: RML(config, rngs=nnx.Rngs(0))))


@pytest.fixture(scope="module")
def train_step(network):
    """The jitted step over a `traces` list that grows each time it is traced anew."""
    graphdef, _ = network
    traces = []
    pure = make_train_step(graphdef, optax.sgd(0.01), CONFIG)

    def traced(state, batch, mutual):
        traces.append(mutual)
        return pure(state, batch, mutual)

    jitted = jax.jit(traced, static_argnames="mutual")
    jitted_with_traces = lambda *arguments: jitted(*arguments)  # noqa: E731 - carries the attribute
    jitted_with_traces.traces = traces
    return jitted_with_traces


def make_batch(seed):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3)).astype(np.uint8),
        "box": np.array([[0, 0, SIZE, SIZE], [0, 4, SIZE - 4, SIZE]], np.int32),
        "tags": np.array([[1, 0, 1], [0, 1, 0]], np.float32),
    }


def make_state(params, seed=0):
    return TrainState(jnp.int32(0), params, optax.sgd(0.01).init(params), jax.random.key(seed))


def backbone_norms(gradients):
    """Norm of each stacked gradient [terms, ...] over the backbone's parameters."""
    leaves = jax.tree.leaves(nnx.to_pure_dict(gradients)["backbone"])
    return np.sqrt(
        sum(np.square(leaf).reshape(len(leaf), -1).sum(axis=1) for leaf in map(np.asarray, leaves))
    )


def test_normalize_by_hand():
    images = np.full((1, 2, 2, 3), 51, np.uint8)
    expected = (0.2 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    np.testing.assert_allclose(normalize(images)[0, 1, 1], expected, rtol=1e-5)
    boxed = np.asarray(normalize(images, np.array([[0, 1, 2, 2]])))[0]
    np.testing.assert_allclose(boxed[:, 1], np.tile(expected, (2, 1)), rtol=1e-5)
    assert not boxed[:, 0].any()


# Of the second image of `make_batch`, whose left column and last row of cells are padding.
CENTRED = dataclasses.replace(CONFIG, center_features=True)


def test_cells_of_the_image_by_hand():
    batch, expected = make_batch(0), np.ones((BATCH, 8, 8), bool)
    expected[1, :, 0] = expected[1, 7] = False
    views = np.zeros((BATCH, SIZE, SIZE, 3))
    assert image_cells(views, batch, CONFIG) is None
    np.testing.assert_array_equal(image_cells(views, batch, CENTRED), expected)
    # At half the size a cell covers 8 pixels of the crop. The centre of the first column lies on the box's edge.
    half = image_cells(views[:, ::2, ::2], batch, CENTRED)
    np.testing.assert_array_equal(half[1], [[True] * 4] * 3 + [[False] * 4])
    mirrored = image_cells(np.zeros((2 * BATCH, SIZE, SIZE, 3)), batch, CENTRED)
    np.testing.assert_array_equal(mirrored[::2], expected)
    np.testing.assert_array_equal(mirrored[1::2], expected[:, :, ::-1])


def test_centred_features_leave_out_what_lies_outside_in_both_views(build):
    """Class scores of the warped view by a loop in NumPy over the cells that A fills with pixels.

    The radius covers the whole grid of 8x8 cells.
    """
    config = RMLConfig(BACKBONES["mini"](drop_path_rate=0.0), CLASSES, center_radius=8)
    model = build(lambda: RML(config, rngs=nnx.Rngs(0)))
    batch, theta = make_batch(0), jnp.tile(jnp.array([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]]), (BATCH, 1, 1))
    images = normalize(batch["image"], batch["box"])
    outputs = both_views(model, images, batch, theta, jax.random.key(0), CENTRED)
    weight = np.asarray(model.classifier.kernel[...])
    inside = np.zeros((2, BATCH, 8, 8), bool)
    inside[0, 0], inside[0, 1, :7, 1:] = True, True
    # Half the size: the content fills the four cells in the middle, whose outer ones mix it with the filling.
    inside[1, 0, 2:6, 2:6] = True
    inside[1, 1, 2:5, 3:6] = True
    for view in range(2):
        for image in range(BATCH):
            here = inside[view, image]
            features = np.asarray(outputs.features[view, image])
            deviations = features - features[here].mean(axis=0)
            np.testing.assert_allclose(
                outputs.logits[view, image], deviations[here].max(axis=0) @ weight, atol=1e-4
            )
            cams = np.asarray(outputs.cam_logits[view, image])
            # Deviations that could be rounding errors are taken for 0.
            np.testing.assert_allclose(cams[here], deviations[here] @ weight, atol=1e-4)
            assert not cams[~here].any()


@pytest.mark.parametrize("center_radius", [0, 8])
def test_joined_images_by_a_loop_over_their_parts(build, center_radius):
    """The loss in NumPy, from the network's features of the joined images. The radius covers the whole grid."""
    config = RMLConfig(BACKBONES["mini"](drop_path_rate=0.0), CLASSES, center_radius=center_radius)
    model = build(lambda: RML(config, rngs=nnx.Rngs(0)))
    settings = dataclasses.replace(CONFIG, join=0.5, center_features=center_radius > 0)
    batch, key = make_batch(0), jax.random.key(3)
    images = normalize(batch["image"], batch["box"])
    kept, joined = map(np.asarray, sample_parts(key, BATCH, (8, 8), 0.5))
    assert joined.tolist() == [False, True]
    # Of the second image, whose left column and last row of cells are padding; its partner has none.
    shown = np.ones((BATCH, 8, 8), bool)
    shown[1][kept[1]] = np.asarray(image_cells(images, batch, CENTRED))[1][kept[1]]
    pixels = np.kron(kept[1], np.ones((4, 4), bool))[..., None]
    canvas = jnp.stack([images[0], jnp.where(pixels, images[1], images[0])])
    features = np.asarray(model(canvas, cells=jnp.asarray(shown) if center_radius else None).features)
    weight = np.asarray(model.classifier.kernel[...])
    expected = 0.0
    for image, parts in enumerate(([(kept[0], 0)], [(kept[1], 1), (~kept[1], 0)])):
        for cells, source in parts:
            seen = cells & shown[image] if center_radius else cells
            values = features[image]
            if center_radius:
                values = values - values[shown[image]].mean(axis=0)
            scores = values[seen].max(axis=0) @ weight
            tags = batch["tags"][source]
            if len(parts) == 1:
                expected += np.logaddexp(0, np.where(tags, -scores, scores)).sum()
            else:
                expected += np.logaddexp(0, scores)[tags == 0].sum() / 2
    loss, _ = classification_loss(model, images, batch, key, None, settings)
    np.testing.assert_allclose(loss, expected / (BATCH * CLASSES), rtol=1e-5)


def test_gradient_of_every_term_reaches_the_backbone_through_both_views(network):
    graphdef, params = network
    batch, theta = make_batch(0), jnp.tile(jnp.array([[1.3, 0.1, 0.05], [-0.1, 1.3, 0.0]]), (BATCH, 1, 1))
    images = normalize(batch["image"], batch["box"])
    names = (
        "ciml",
        "mfml",
        "apml",
        "prototype_similarity",
        "information_context",
        "affinity",
        "self_training",
    )

    def terms(params):
        """The terms with a gradient through the original view alone, and through the warped view alone."""
        model = nnx.merge(graphdef, params)
        labels = make_pseudo_labels(graphdef, params, images, batch, CONFIG)
        views = [model(images), model(warp(images, theta))]
        fixed = jax.lax.stop_gradient(views)
        values = []
        for pair in ([views[0], fixed[1]], [fixed[0], views[1]]):
            outputs = jax.tree.map(lambda *x: jnp.stack(x), *pair)
            _, metrics = pair_losses(outputs, labels, batch, theta, CONFIG)
            values += [metrics[name] for name in names]
        return jnp.stack(values)

    norms = backbone_norms(jax.jit(jax.jacrev(terms))(params)).reshape(2, -1)
    for view, of_view in zip(("original", "warped"), norms, strict=True):
        assert dict(zip(names, of_view > 1e-7, strict=True)) == dict.fromkeys(names, True), view


def test_step_compiles_once_per_phase(network, train_step):
    state = make_state(network[1])
    for number, mutual in enumerate((False, False, False, True, True, True)):
        state, _ = train_step(state, make_batch(number), mutual)
    assert train_step.traces == [False, True]
    assert int(state.step) == 6


def test_step_is_a_function_of_state_and_batch(network, train_step):
    first, second, other = (
        train_step(make_state(network[1], seed), make_batch(0), True)[0] for seed in (0, 0, 1)
    )
    assert_trees(np.array_equal, first.params, second.params)
    assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, first.params, other.params)))


def test_every_metric_is_finite_and_the_total_is_eq_16(network, train_step):
    _, metrics = train_step(make_state(network[1]), make_batch(0), True)
    assert np.isfinite(list(metrics.values())).all()
    terms = metrics["ciml"] + metrics["mfml"] + metrics["apml"]
    np.testing.assert_allclose(metrics["loss"], metrics["classification"] + 0.1 * terms, rtol=1e-5)
    assert 0 < metrics["labelled_background"] + metrics["labelled_foreground"] <= 1


@pytest.mark.slow  # a program of its own, half a minute
def test_self_training_is_a_term_with_its_weight(network):
    graphdef, params = network
    weights = {"ciml": 0.0, "mfml": 0.0, "apml": 0.0, "self_training": 0.5}
    config = dataclasses.replace(CONFIG, loss=CONFIG.loss | weights)
    step = make_train_step(graphdef, optax.sgd(0.01), config)
    _, metrics = jax.jit(step, static_argnames="mutual")(make_state(params), make_batch(0), True)
    assert metrics["self_training"] > 0
    expected = metrics["classification"] + 0.5 * metrics["self_training"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_warm_up_reports_classification_alone(network, train_step):
    state, metrics = train_step(make_state(network[1]), make_batch(0), False)
    norms = {"gradient_norm", "gradient_norm/backbone", "gradient_norm/heads"}
    assert set(metrics) == {"loss", "classification", "skipped"} | norms
    assert metrics["loss"] == metrics["classification"]
    # The mutual-learning heads rest: their parameters have no gradient.
    for head in ("affinity", "fusion"):
        assert_trees(np.array_equal, state.params[head], network[1][head])


def test_step_that_is_not_finite_changes_nothing_and_is_counted(network, train_step):
    state = make_state(network[1])
    batch = make_batch(0)
    batch["tags"][0, 0] = np.nan
    after, metrics = train_step(state, batch, False)
    assert metrics["skipped"] == 1
    assert not np.isfinite(metrics["loss"])
    assert_trees(np.array_equal, after.params, state.params)
    assert_trees(np.array_equal, after.optimizer, state.optimizer)
    assert int(after.step) == 1, "its batch and its random numbers are used up"
    _, metrics = train_step(after, make_batch(0), False)
    assert metrics["skipped"] == 0


@pytest.mark.slow  # half a minute
def test_accumulated_gradient_of_the_classification_is_that_of_the_whole_batch(build):
    """Not so of the other losses, whose prototypes and histograms are those of each part."""
    backbone = dataclasses.replace(
        SMALL_BACKBONE, drop_path_rate=0.0
    )  # the parts draw random numbers of their own
    config = RMLConfig(backbone, CLASSES, context_channels=4)
    graphdef, params = nnx.split(build(lambda: RML(config, rngs=nnx.Rngs(0))))
    batch = {name: np.concatenate([array, array[::-1]]) for name, array in make_batch(3).items()}
    batch["image"][3] = 255 - batch["image"][3]
    after = {}
    for parts in (1, 2):
        step = make_train_step(graphdef, optax.sgd(0.5), dataclasses.replace(CONFIG, grad_accum_steps=parts))
        after[parts], _ = jax.jit(step, static_argnames="mutual")(make_state(params), batch, False)
    assert_trees(lambda a, b: np.allclose(a, b, rtol=1e-4, atol=1e-6), after[1].params, after[2].params)
    assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, after[2].params, params)))


def test_frozen_norms_get_no_gradient_and_count_in_no_norm(network, train_step):
    graphdef, params = network
    frozen = make_train_step(graphdef, optax.sgd(0.01), dataclasses.replace(CONFIG, freeze_norms=True))
    state, metrics = jax.jit(frozen, static_argnames="mutual")(make_state(params), make_batch(0), False)
    free, all_metrics = train_step(make_state(params), make_batch(0), False)
    groups = named_leaves(parameter_groups(params, freeze_norms=True))
    before, after, expected = map(named_leaves, (params, state.params, free.params))
    # sgd's update is the gradient times its rate.
    gradients = {name: (before[name] - expected[name]) / 0.01 for name in before}
    for name, group in groups.items():
        same_as = before if group == "frozen" else expected
        np.testing.assert_allclose(after[name], same_as[name], rtol=1e-5, atol=1e-7, err_msg=name)
    assert any(np.any(gradients[name]) for name, group in groups.items() if group == "frozen")

    def norm(*wanted):
        squares = [np.square(gradients[name]).sum() for name, group in groups.items() if group in wanted]
        return pytest.approx(float(np.sqrt(sum(squares))), rel=1e-3)

    assert metrics["gradient_norm"] == norm("backbone", "heads")
    assert metrics["gradient_norm/backbone"] == norm("backbone")
    assert metrics["gradient_norm/heads"] == norm("heads")
    assert all_metrics["gradient_norm/backbone"] == norm("backbone", "frozen")


def test_parts_of_a_batch_take_every_nth_image():
    seen = []

    def compute(part, key):
        jax.debug.callback(lambda x: seen.append(x.tolist()), part["number"], ordered=True)
        return part["number"].sum()

    assert float(mean_over_parts(compute, {"number": np.arange(6.0)}, jax.random.key(0), 3)) == 5.0
    assert seen == [[0, 3], [1, 4], [2, 5]]


def test_padding_does_not_reach_the_loss(network, train_step):
    batch, noisy = make_batch(0), make_batch(0)
    noisy["image"] = noisy["image"].copy()
    noisy["image"][1, :, :4] = 255
    noisy["image"][1, -4:] = 255
    (first, _), (second, _) = (train_step(make_state(network[1]), b, False) for b in (batch, noisy))
    assert_trees(np.array_equal, first.params, second.params)


@pytest.mark.slow  # a minute on a CPU
def test_bfloat16_activations_leave_parameters_and_losses_in_float32(network, train_step):
    _, params = network
    config = RMLConfig(BACKBONES["mini"](drop_path_rate=0.1), CLASSES)
    half = nnx.eval_shape(lambda: RML(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    step = jax.jit(make_train_step(nnx.split(half)[0], optax.sgd(0.01), CONFIG), static_argnames="mutual")
    state, metrics = step(make_state(params), make_batch(0), mutual=True)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert {value.dtype for value in metrics.values()} == {jnp.dtype("float32")}
    _, exact = train_step(make_state(params), make_batch(0), True)
    for term in ("classification", "mfml"):
        np.testing.assert_allclose(metrics[term], exact[term], rtol=0.1)


def test_labels_are_not_learned_from_absent_classes(network):
    batch = make_batch(0)
    images = normalize(batch["image"], batch["box"])
    labels = jax.jit(lambda: make_pseudo_labels(*network, images, batch, CONFIG))()
    found = [set(np.unique(one)) for one in np.asarray(labels)]
    assert found[0] <= {0, 1, 3, 255}
    assert found[1] <= {0, 2, 255}
    # Outside the second image's box nothing is labelled.
    assert (np.asarray(labels)[1, :, :4] == 255).all()


def assert_trees(same, first, second):
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(same(a, b)), first, second)))
