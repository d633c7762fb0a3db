"""What 50 steps of L_MFML alone do to a context, with and without its standardisation."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rml_jax import losses
from rml_jax.ops import AffineRange, sample_affine, warp
from rml_jax.ops.affine import validity

STEPS, IMAGES, SIDE, HIDDEN, CHANNELS = 50, 4, 16, 16, 6


def initial(seed=0):
    """Smooth images, and the parameters of a network that works pixel by pixel."""
    keys = jax.random.split(jax.random.key(seed), 3)
    coarse = jax.random.normal(keys[0], (IMAGES, 6, 6, 3))
    images = jax.image.resize(coarse, (IMAGES, SIDE, SIDE, 3), "bilinear")
    hidden = 0.5 * jax.random.normal(keys[1], (3, HIDDEN))
    out = 0.3 * jax.random.normal(keys[2], (HIDDEN, CHANNELS))
    return images, {"hidden": hidden, "out": out, "bias": jnp.zeros(CHANNELS)}


def context_of(params, images):
    return jax.nn.gelu(images @ params["hidden"]) @ params["out"] + params["bias"]


def mfml_loss(original, warped, theta, valid):
    views = (SimpleNamespace(context=context) for context in (original, warped))
    fields = dict.fromkeys(losses.Pair._fields[2:]) | {"theta": theta, "valid_context": valid}
    return losses.mfml(losses.Pair(*views, **fields), 1.0)[0]


def distance_of_raw_contexts(original, warped, theta, valid):
    return losses.masked_mean(jnp.abs(warp(original, theta) - warped), valid[..., None])


def train(loss_of):
    """Deviation over space and effective rank of the context, before and after."""
    images, params = initial()
    optimizer = optax.adam(0.05)
    everywhere = jnp.ones((IMAGES, SIDE, SIDE), bool)

    def loss(params, key):
        theta = sample_affine(key, IMAGES, AffineRange())
        contexts = (context_of(params, view) for view in (images, warp(images, theta)))
        return loss_of(*contexts, theta, validity(theta, everywhere))

    def step(carry, key):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, key), state)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run(params):
        keys = jax.random.split(jax.random.key(1), STEPS)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    return [measure(context_of(p, images)) for p in (params, run(params))]


def measure(context):
    """By singular values, independently of `losses.effective_rank`."""
    context = np.asarray(context)
    centred = context - context.mean(axis=(1, 2), keepdims=True)
    deviation = centred.std(axis=(1, 2), keepdims=True)
    values = np.square(np.linalg.svd((centred / deviation).reshape(-1, CHANNELS), compute_uv=False))
    return float(deviation.mean()), float(values.sum() ** 2 / np.square(values).sum())


def test_standardisation_keeps_the_context_from_becoming_constant():
    (before, _), (after, _) = train(mfml_loss)
    assert after > before
    (before, _), (after, _) = train(distance_of_raw_contexts)
    assert after < 0.2 * before


@pytest.mark.parametrize("copies", [1, 2, 4])
def test_effective_rank_counts_independent_channels(copies):
    # 4 / copies orthogonal maps, each as often as `copies`.
    x, y = np.meshgrid(*2 * [2 * np.pi * np.arange(8) / 8])
    maps = [np.sin(x), np.cos(x), np.sin(y), np.cos(y)][: 4 // copies] * copies
    context = np.sqrt(2) * np.stack(maps, axis=-1)[None]
    rank = losses.effective_rank(jnp.asarray(context, jnp.float32), jnp.ones((1, 8, 8), bool))
    assert rank == pytest.approx(4 / copies, rel=1e-4)
