"""L_cls, the classification loss on image-level tags (Eq. 15)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from rml_jax.losses.common import binary_cross_entropy

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def multilabel_soft_margin(logits: Float[Array, "b c"], tags: Float[Array, "b c"]) -> Float[Array, ""]:
    """Computes L_cls: the mean binary cross-entropy over images and classes.

    This is Eq. 15 with the sign that is missing in print (docs/method.md, Losses).

    Args:
      logits: float [B, C].
      tags: 0/1 [B, C].

    Returns:
      float32 scalar, in nats.
    """
    return jnp.mean(binary_cross_entropy(logits, tags))
