"""Helpers that several losses share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

TINY = 1e-12  # keeps divisions, roots and logarithms finite at 0


def masked_mean(
    values: Float[Array, "*shape"], mask: Bool[Array, "*#shape"] | Float[Array, "*#shape"]
) -> Float[Array, ""]:
    """Computes the mean of the values where a mask is true.

    Args:
      values: float [...].
      mask: bool or float weights, broadcastable to `values`.

    Returns:
      float32 scalar; 0 where the mask is false everywhere.
    """
    mask = jnp.broadcast_to(mask, values.shape).astype(jnp.float32)
    return jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask), TINY)


def binary_cross_entropy(
    logits: Float[Array, "*shape"], targets: Float[Array, "*#shape"]
) -> Float[Array, "*shape"]:
    """Computes the binary cross-entropy of each logit, without a reduction.

    Args:
      logits: float [...].
      targets: values from 0 to 1, broadcastable to `logits`.

    Returns:
      float [...], in nats.
    """
    return -(targets * jax.nn.log_sigmoid(logits) + (1 - targets) * jax.nn.log_sigmoid(-logits))
