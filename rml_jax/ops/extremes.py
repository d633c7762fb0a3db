"""Extremes of maps whose gradients are safe from rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float


@jax.custom_vjp
def spatial_max(x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    """Computes the maximum of every map; its gradient goes to the first place where it is.

    The gradient of `jnp.max` goes to the values that equal the maximum. XLA's CPU backend may compute the values anew
    for that comparison, rounded otherwise, and then none is equal: a part of the gradient is missing
    (findings/xla-cpu-loses-gradients-of-max.sh).

    Args:
      x: float [B, H, W, C].

    Returns:
      [B, C].
    """
    return jnp.max(x, axis=(1, 2))


def _forward(x):
    return spatial_max(x), x


def _backward(x, gradient):
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    is_first = jnp.arange(flat.shape[1])[:, None] == jnp.argmax(flat, axis=1)[:, None]
    return (jnp.where(is_first, gradient[:, None], 0).reshape(x.shape),)


spatial_max.defvjp(_forward, _backward)


def spatial_min(x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    """Computes the minimum of every map, as `spatial_max` the maximum.

    Args:
      x: float [B, H, W, C].

    Returns:
      [B, C].
    """
    return -spatial_max(-x)
