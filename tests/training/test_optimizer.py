"""The optimizer: schedule by hand, groups by the types of the modules, updates against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rml_jax.models import RML, RMLConfig
from rml_jax.training.optimizer import OptimizerConfig, make_optimizer, parameter_groups, warmup_poly
from rml_jax.utils.trees import named_leaves
from tests.references.networks import SMALL_BACKBONE

CONFIG = OptimizerConfig(
    backbone_lr=0.02, head_lr=0.05, weight_decay=0.1, warmup_steps=4, total_steps=20, freeze_norms=True
)


@pytest.fixture(scope="module")
def model(build):
    return build(lambda: RML(RMLConfig(SMALL_BACKBONE, num_classes=3, context_channels=5), rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def params(model):
    return nnx.split(model)[1]


def backbone_norms(model):
    """Names of the parameters of every LayerNorm in the backbone, found by its type."""
    norms = [
        "/".join(map(str, path))
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nnx.LayerNorm)
    ]
    return {f"{norm}/{kind}" for norm in norms for kind in ("scale", "bias")}


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 1e-6),
        (1, 1e-6 + 0.25 * (1 - 1e-6)),
        (2, 1e-6 + 0.5 * (1 - 1e-6)),
        (3, 1e-6 + 0.75 * (1 - 1e-6)),
        (4, 0.8),
        (10, 0.5),
        (19, 0.05),
        (20, 0.0),
        (25, 0.0),
    ],
)
def test_schedule(step, factor):
    rate = warmup_poly(0.3, dataclasses.replace(CONFIG, warmup_steps=4, total_steps=20))
    assert float(rate(step)) == pytest.approx(0.3 * factor, rel=1e-5, abs=1e-12)
    assert float(jax.jit(rate)(jnp.int32(step))) == pytest.approx(0.3 * factor, rel=1e-5, abs=1e-12)


def test_published_schedule():
    rate = warmup_poly(6e-5, dataclasses.replace(CONFIG, warmup_steps=1500, total_steps=18000))
    assert float(rate(0)) == pytest.approx(6e-11, rel=1e-4)
    assert float(rate(750)) == pytest.approx(3e-5, rel=1e-4)
    assert float(rate(9000)) == pytest.approx(3e-5, rel=1e-4)
    assert float(rate(17999)) == pytest.approx(6e-5 / 18000, rel=1e-3)


def test_schedule_without_warmup_starts_at_the_base():
    rate = warmup_poly(0.3, dataclasses.replace(CONFIG, warmup_steps=0, total_steps=10))
    assert [float(rate(step)) for step in (0, 5, 9)] == pytest.approx([0.3, 0.15, 0.03])


def test_all_norms_of_the_backbone_are_frozen_and_nothing_else(model, params):
    norms = backbone_norms(model)
    # Stage end, embedding and two per block for each stage, and one after each of the two reductions.
    assert len(norms) == 2 * (4 + 4 + 2 * 5 + 2)
    groups = named_leaves(parameter_groups(params, freeze_norms=True))
    assert groups.keys() == named_leaves(params).keys()
    assert {name for name, group in groups.items() if group == "frozen"} == norms
    heads = {name for name, group in groups.items() if group == "heads"}
    assert heads == {
        "classifier/kernel",
        "affinity/kernel",
        "affinity/bias",
        "fusion/kernel",
        "fusion/bias",
    }
    rest = groups.keys() - norms - heads
    assert {groups[name] for name in rest} == {"backbone"}
    assert all(name.startswith("backbone/") for name in rest | norms)


def test_nothing_is_frozen_unless_asked_for(model, params):
    groups = named_leaves(parameter_groups(params, freeze_norms=False))
    assert set(groups.values()) == {"backbone", "heads"}
    assert {groups[name] for name in backbone_norms(model)} == {"backbone"}


def gradients_like(params, steps):
    rng = np.random.default_rng(0)
    return [
        jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params)
        for _ in range(steps)
    ]


def train(config, params, gradients):
    optimizer = make_optimizer(config, params)
    state = optimizer.init(params)

    @jax.jit
    def update(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for gradient in gradients:
        params, state = update(params, state, gradient)
    return named_leaves(params)


def numpy_adamw(value, gradients, rates, decay):
    """AdamW with decoupled decay (Loshchilov and Hutter), in float64."""
    value = np.asarray(value, np.float64)
    mean, square = np.zeros_like(value), np.zeros_like(value)
    for count, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * np.square(gradient, dtype=np.float64)
        step = (mean / (1 - 0.9**count)) / (np.sqrt(square / (1 - 0.999**count)) + 1e-8)
        value = value - rate * (step + decay * value)
    return value


def test_ten_updates_equal_numpy(model, params):
    gradients = gradients_like(params, 10)
    trained = train(CONFIG, params, gradients)
    gradients = [named_leaves(gradient) for gradient in gradients]
    frozen = backbone_norms(model)
    factors = np.array([1e-6, 0.25, 0.5, 0.75, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55])
    for name, value in named_leaves(params).items():
        if name in frozen:
            np.testing.assert_array_equal(trained[name], value, err_msg=name)
            continue
        base = 0.02 if name.startswith("backbone/") else 0.05
        expected = numpy_adamw(value, [gradient[name] for gradient in gradients], base * factors, decay=0.1)
        np.testing.assert_allclose(trained[name], expected, atol=2e-6, rtol=1e-5, err_msg=name)
        assert np.abs(expected - value).max() > 1e-3, "the comparison is about something"


def test_norms_train_where_they_are_not_frozen(model, params):
    config = dataclasses.replace(CONFIG, freeze_norms=False)
    trained = train(config, params, gradients_like(params, 2))
    before = named_leaves(params)
    assert all((np.asarray(trained[name]) != before[name]).any() for name in backbone_norms(model))
