"""L_MFML: equivariance of the fused context R_c (Eqs. 6 to 8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from rml_jax.losses.common import TINY, masked_mean
from rml_jax.losses.mutual_information import mutual_information
from rml_jax.ops.affine import warp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

    from rml_jax.losses.pair import Pair


def standardize(context: Float[Array, "b h w k"], valid: Bool[Array, "b h w"]) -> Float[Array, "b h w k"]:
    """Scales the context R_c to mean 0 and deviation 1 over space, per image and channel.

    Without it, a constant map would minimise the alignment (docs/method.md, Losses). There are no running statistics.

    Args:
      context: float [B, H, W, K].
      valid: bool [B, H, W], the pixels that count.

    Returns:
      float32 [B, H, W, K].
    """
    weight = valid[..., None].astype(jnp.float32)
    count = jnp.maximum(weight.sum(axis=(1, 2), keepdims=True), 1.0)
    centred = context - (context * weight).sum(axis=(1, 2), keepdims=True) / count
    variance = (jnp.square(centred) * weight).sum(axis=(1, 2), keepdims=True) / count
    return centred * jax.lax.rsqrt(variance + 1e-5)


def effective_rank(context: Float[Array, "b h w k"], valid: Bool[Array, "b h w"]) -> Float[Array, ""]:
    """Computes the effective number of independent channels of a context.

    This is the participation ratio of the correlation's eigenvalues: the square of their sum over the sum of their
    squares (docs/method.md, Collapse).

    Args:
      context: float [B, H, W, K], standardised.
      valid: bool [B, H, W].

    Returns:
      float32 scalar from 1, if all channels are copies of one, to K; 0 if no pixel is valid.
    """
    flat = (context * valid[..., None]).reshape(-1, context.shape[-1])
    correlation = jnp.matmul(flat.T, flat, precision="highest") / jnp.maximum(jnp.sum(valid), 1)
    return jnp.square(jnp.trace(correlation)) / jnp.maximum(jnp.sum(jnp.square(correlation)), TINY)


def mfml(pair: Pair, beta1: float) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Computes L_MFML: mean |A(R_c) - R'_c| plus beta1 times I(R_c; R'_c), over valid pixels (Eqs. 6 to 8).

    The softmax over the K channels is the discrete variable of the mutual information.

    Args:
      pair: `context` of both views, `theta` and `valid_context` are used.
      beta1: weight of the mutual information, in nats.

    Returns:
      float32 scalar, and its parts `alignment` and `information_context`, with `context_deviation` and
      `context_rank` of the warped view, which show whether the context collapses.
    """
    valid = pair.valid_context
    # Both are standardised over the same pixels, so that an exactly equivariant context has distance 0.
    moved = standardize(warp(pair.original.context, pair.theta), valid)
    warped = standardize(pair.warped.context, valid)
    distance = masked_mean(jnp.abs(moved - warped), valid[..., None])
    information = mutual_information(jax.nn.softmax(moved), jax.nn.softmax(warped), valid)
    parts = {
        "alignment": distance,
        "information_context": information,
        "context_deviation": jnp.mean(jnp.std(pair.warped.context, axis=(1, 2))),
        "context_rank": effective_rank(warped, valid),
    }
    return distance + beta1 * information, parts
