"""Attention in chunks: against softmax and products of NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml_jax.ops import attention
from tests.platforms import as_on

BATCH, HEADS, QUERIES, KEYS, CHANNELS = 2, 3, 50, 7, 4


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    shapes = [(BATCH, HEADS, n, CHANNELS) for n in (QUERIES, KEYS, KEYS)]
    return [rng.normal(0, 2, shape).astype(np.float32) for shape in shapes]


def reference(query, key, value, real_keys=None):
    logits = np.einsum("bhqd,bhkd->bhqk", query, key, dtype=np.float64)
    if real_keys is not None:
        logits = np.where(real_keys, logits, -np.inf)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.einsum("bhqk,bhkd->bhqd", weights / weights.sum(axis=-1, keepdims=True), value)


# All at once; one chunk a head; five of 10 queries; seven of 8, the last of them with 2; a query each.
@pytest.mark.parametrize("at_once", [2**21, QUERIES * KEYS, 10 * KEYS, 8 * KEYS, 1])
@pytest.mark.parametrize("padded", [False, True])
def test_equals_numpy(inputs, monkeypatch, at_once, padded):
    monkeypatch.setattr(attention, "LOGITS_AT_ONCE", at_once)
    real_keys = np.arange(KEYS) < np.array([7, 2])[:, None, None, None] if padded else None
    result = jax.jit(attention.chunked_attention)(*inputs, real_keys)
    np.testing.assert_allclose(result, reference(*inputs, real_keys), rtol=1e-5, atol=1e-5)


def test_keys_of_the_padding_may_hold_anything(inputs, monkeypatch):
    monkeypatch.setattr(attention, "LOGITS_AT_ONCE", 10 * KEYS)
    real_keys = np.arange(KEYS) < np.array([7, 2])[:, None, None, None]
    query, key, value = inputs
    changed = (
        np.where(np.moveaxis(real_keys, 3, 2), key, 1e4),
        np.where(np.moveaxis(real_keys, 3, 2), value, 1e4),
    )
    np.testing.assert_array_equal(
        attention.chunked_attention(query, *changed, real_keys),
        attention.chunked_attention(*inputs, real_keys),
    )


def test_on_accelerators_all_heads_are_computed_at_once(inputs, monkeypatch):
    monkeypatch.setattr(attention, "LOGITS_AT_ONCE", 1)
    np.testing.assert_allclose(
        as_on(("tpu",), attention.chunked_attention)(*inputs), reference(*inputs), rtol=1e-5, atol=1e-5
    )


def test_operands_are_rounded_in_chunks(inputs, monkeypatch):
    monkeypatch.setattr(attention, "LOGITS_AT_ONCE", 10 * KEYS)
    narrow = functools.partial(attention.chunked_attention, operands=jnp.bfloat16)
    rounded = [np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32) for x in inputs]
    error = np.abs(narrow(*inputs) - reference(*rounded)).max()
    # The weights are rounded as well, to 8 bits.
    assert 1e-5 < error < 2**-8 * np.abs(inputs[2]).max()


@pytest.mark.parametrize("at_once", [2**21, 10 * KEYS])
def test_the_type_is_that_of_the_values(inputs, monkeypatch, at_once):
    monkeypatch.setattr(attention, "LOGITS_AT_ONCE", at_once)
    query, key, value = inputs
    assert attention.chunked_attention(query, key, value.astype(jnp.bfloat16)).dtype == jnp.bfloat16
