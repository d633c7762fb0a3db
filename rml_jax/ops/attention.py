"""Attention that keeps its weights in a CPU's cache."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from rml_jax.ops.grid import ceil_div

if TYPE_CHECKING:
    from jax.typing import DTypeLike
    from jaxtyping import Array, Bool, Float

LOGITS_AT_ONCE = 2**21
"""Most logits of one chunk: 8 MiB in float32. With fewer, each product is too small to keep both cores busy."""


def chunked_attention(
    query: Float[Array, "b heads n d"],
    key: Float[Array, "b heads m d"],
    value: Float[Array, "b heads m d"],
    real_keys: Bool[Array, "b 1 1 m"] | None = None,
    *,
    operands: DTypeLike | None = None,
) -> Float[Array, "b heads n d"]:
    """Computes softmax(query key^T) value, on a CPU one head and a chunk of its queries at a time.

    For passes without gradient, which would keep the weights of every chunk. XLA's CPU backend writes the weights of
    all heads to memory several times otherwise. GPUs and TPUs compute all heads at once, and so does a CPU if that is
    no more than one chunk. Sizes are static.

    Args:
      query: float [B, heads, N, D], scaled.
      key, value: float [B, heads, M, D].
      real_keys: bool [B, 1, 1, M], which keys take part, at least one for each image; None for all.
      operands: type that the operands of both products are rounded to in chunks; None for their own.

    Returns:
      [B, heads, N, D], in value's type.
    """
    if math.prod(query.shape[:3]) * key.shape[2] <= LOGITS_AT_ONCE:
        return _at_once(query, key, value, real_keys)
    if real_keys is None:
        real_keys = jnp.ones((key.shape[0], 1, 1, key.shape[2]), bool)
    by_chunks = functools.partial(_by_chunks, operands=operands)
    return jax.lax.platform_dependent(query, key, value, real_keys, cpu=by_chunks, default=_at_once)


def _at_once(query, key, value, real_keys):
    logits = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits, axis=-1, where=real_keys).astype(value.dtype)
    return jnp.einsum("bhqk,bhkd->bhqd", weights, value)


def _by_chunks(query, key, value, real_keys, operands):
    batch, heads, queries, _ = query.shape
    chunks = ceil_div(queries * key.shape[2], LOGITS_AT_ONCE)
    size = ceil_div(queries, chunks)
    padded = jnp.pad(query, ((0, 0), (0, 0), (0, chunks * size - queries), (0, 0)))
    real_keys = jnp.broadcast_to(real_keys[:, :, 0], (batch, heads, key.shape[2]))

    def one_head(inputs):
        query, *rest = inputs
        if chunks == 1:  # compiles faster than a loop
            return _one_chunk(query[0], *rest, operands)[None]
        return jax.lax.map(lambda chunk: _one_chunk(chunk, *rest, operands), query)

    by_head = (x.reshape(batch * heads, *x.shape[2:]) for x in (padded, key, value, real_keys))
    query, *rest = by_head
    result = jax.lax.map(one_head, (query.reshape(batch * heads, chunks, size, -1), *rest))
    return result.reshape(batch, heads, chunks * size, -1)[:, :, :queries].astype(value.dtype)


def _one_chunk(query, key, value, real_keys, operands):
    """Computes attention of queries [n, D] to keys and values [M, D]: float32 [n, D]."""
    logits = _matmul(query, key.T, operands)
    logits = jnp.where(real_keys, logits, -math.inf)
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    # The sums divide D values rather than M.
    return _matmul(weights, value, operands) / weights.sum(axis=-1, keepdims=True)


def _matmul(left, right, operands):
    dtype = operands or right.dtype
    return jnp.matmul(left.astype(dtype), right.astype(dtype), preferred_element_type=jnp.float32)
