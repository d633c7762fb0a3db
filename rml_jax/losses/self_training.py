"""L_self: the CAMs learn from their own pseudo labels. Not in the paper (docs/method.md, Beyond the paper)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from rml_jax.labels import BACKGROUND, IGNORE
from rml_jax.losses.common import binary_cross_entropy, masked_mean

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


def self_training(
    cam_logits: Float[Array, "b h w c"], labels: Int[Array, "b h w"], tags: Float[Array, "b c"]
) -> Float[Array, ""]:
    """Computes L_self of one view: cross-entropy of the class scores with the refined pseudo labels, per cell.

    In the paper, pseudo labels train the affinity alone, so PAR's corrections do not reach the CAMs. L_self is the
    binary cross-entropy of each cell's class scores, averaged over the image's tagged classes, then over the cells
    labelled with a class and over those labelled background, each half weighted.

    Args:
      cam_logits: float [B, h, w, C], before ReLU.
      labels: int [B, h, w], pseudo labels: 0 background, 1..C classes, 255 ignore.
      tags: 0/1 [B, C].

    Returns:
      float32 scalar, in nats; a half without cells counts 0.
    """
    entropy = binary_cross_entropy(cam_logits, jax.nn.one_hot(labels - 1, cam_logits.shape[-1]))
    tagged = tags[:, None, None, :]
    cells = jnp.sum(entropy * tagged, axis=-1) / jnp.maximum(jnp.sum(tagged, axis=-1), 1)
    foreground = (labels != BACKGROUND) & (labels != IGNORE)
    return 0.5 * (masked_mean(cells, foreground) + masked_mean(cells, labels == BACKGROUND))
