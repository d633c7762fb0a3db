"""What 50 steps of L_MFML alone do to a context: with its normalisation, without it, and whitened."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rml_jax import losses
from rml_jax.ops import AffineRange, sample_affine, warp
from rml_jax.ops.affine import validity

STEPS, PICTURES, SIDE, HIDDEN, CHANNELS = 50, 4, 16, 16, 6


def initial(seed=0):
    """Smooth pictures, and the parameters of a network that works pixel by pixel."""
    keys = jax.random.split(jax.random.key(seed), 3)
    coarse = jax.random.normal(keys[0], (PICTURES, 6, 6, 3))
    pictures = jax.image.resize(coarse, (PICTURES, SIDE, SIDE, 3), "bilinear")
    hidden = 0.5 * jax.random.normal(keys[1], (3, HIDDEN))
    out = 0.3 * jax.random.normal(keys[2], (HIDDEN, CHANNELS))
    return pictures, {"hidden": hidden, "out": out, "bias": jnp.zeros(CHANNELS)}


def context_of(params, pictures):
    return jax.nn.gelu(pictures @ params["hidden"]) @ params["out"] + params["bias"]


def train(decorrelate):
    """Deviation over space and effective rank of the context, before and after."""
    pictures, params = initial()
    optimizer = optax.adam(0.05)
    everywhere = jnp.ones((PICTURES, SIDE, SIDE), bool)

    def loss(params, key):
        theta = sample_affine(key, PICTURES, AffineRange())
        view, twin = (
            SimpleNamespace(context=context_of(params, p)) for p in (pictures, warp(pictures, theta))
        )
        return losses.mfml(view, twin, theta, validity(theta, everywhere), 1.0, decorrelate)[0]

    def step(carry, key):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, key), state)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run(params):
        keys = jax.random.split(jax.random.key(1), STEPS)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    return [measure(context_of(p, pictures)) for p in (params, run(params))]


def measure(context):
    """By singular values, independently of `losses.effective_rank`."""
    context = np.asarray(context)
    centred = context - context.mean(axis=(1, 2), keepdims=True)
    deviation = centred.std(axis=(1, 2), keepdims=True)
    values = np.square(np.linalg.svd((centred / deviation).reshape(-1, CHANNELS), compute_uv=False))
    return float(deviation.mean()), float(values.sum() ** 2 / np.square(values).sum())


@pytest.fixture(scope="module")
def standardized():
    return train(decorrelate=False)


def test_the_normalisation_keeps_the_context_from_becoming_constant(standardized, monkeypatch):
    (before, _), (after, _) = standardized
    assert after > before
    monkeypatch.setattr(losses, "standardize", lambda context, valid: context)
    (before, _), (after, _) = train(decorrelate=False)
    assert after < 0.2 * before


def test_standardised_channels_become_copies_but_whitened_ones_do_not(standardized):
    (_, before), (_, after) = standardized
    assert before > 2
    assert after < 1.1
    (deviation_before, _), (deviation, after) = train(decorrelate=True)
    assert after > 2
    assert deviation > 0.5 * deviation_before


@pytest.mark.parametrize("copies", [1, 2, 4])
def test_effective_rank_counts_independent_channels(copies):
    # 4 / copies orthogonal maps, each as often as `copies`.
    x, y = np.meshgrid(*2 * [2 * np.pi * np.arange(8) / 8])
    maps = [np.sin(x), np.cos(x), np.sin(y), np.cos(y)][: 4 // copies] * copies
    context = np.sqrt(2) * np.stack(maps, axis=-1)[None]
    rank = losses.effective_rank(jnp.asarray(context, jnp.float32), jnp.ones((1, 8, 8), bool))
    assert rank == pytest.approx(4 / copies, rel=1e-4)


def test_whitened_channels_are_uncorrelated_over_the_real_pixels():
    rng = np.random.default_rng(0)
    context = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    context[..., 2] += context[..., 0]
    real = np.ones((2, 8, 8), bool)
    real[0, :3] = False
    result = np.asarray(losses.whiten(jnp.asarray(context), jnp.asarray(real)))
    assert not result[~real].any()
    np.testing.assert_allclose(result[real].T @ result[real] / real.sum(), np.eye(3), atol=0.02)
