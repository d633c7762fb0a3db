"""Mutual information of two discrete variables (Eqs. 7 and 9 to 12)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from rml_jax.losses.common import TINY

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


def mutual_information(
    first: Float[Array, "*samples k"],
    second: Float[Array, "*samples l"],
    weight: Bool[Array, "*samples"] | Float[Array, "*samples"],
) -> Float[Array, ""]:
    """Computes the mutual information of two discrete variables from a soft joint histogram.

    This is the plug-in estimate: P_kl is the weighted mean over the samples of p(k|x) q(l|x), and
    I = sum P log(P / (P_k P_l)). It is 0 for independent variables, the entropy for identical deterministic ones, and
    at most the logarithm of the smaller number of values. Eqs. 7 and 9 to 12; docs/method.md, Mutual information.

    Args:
      first: float [..., K], p(k|x) of each sample, summing to 1 over K.
      second: float [..., L], q(l|x) of the same samples.
      weight: bool or float [...], 0 for samples that do not count.

    Returns:
      float32 scalar, in nats; 0 where no sample counts.
    """
    first = first.reshape(-1, first.shape[-1]).astype(jnp.float32)
    second = second.reshape(-1, second.shape[-1]).astype(jnp.float32)
    weight = weight.reshape(-1, 1).astype(jnp.float32)
    # TF32 or bf16 products would lose digits of sums over millions of samples.
    joint = jnp.matmul((first * weight).T, second, precision="highest")
    joint /= jnp.maximum(jnp.sum(weight), TINY)
    return _sum_p_log_p(joint) - _sum_p_log_p(joint.sum(axis=1)) - _sum_p_log_p(joint.sum(axis=0))


def _sum_p_log_p(probabilities):
    # The bound keeps the gradient finite where a probability is 0.
    return jnp.sum(probabilities * jnp.log(jnp.maximum(probabilities, TINY)))


def bernoulli(probability: Float[Array, "*shape"]) -> Float[Array, "*shape 2"]:
    """Returns a binary variable's distribution [..., 2] from the probability [...] of its second value."""
    return jnp.stack([1 - probability, probability], axis=-1)
