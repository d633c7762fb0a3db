"""L_APML: affinity learned from pseudo labels (Eqs. 9 to 14)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from rml_jax.labels import IGNORE
from rml_jax.losses.common import masked_mean
from rml_jax.losses.mutual_information import bernoulli, mutual_information

if TYPE_CHECKING:
    from jaxtyping import Array, Float, UInt8

    from rml_jax.losses.pair import Pair


def affinity_loss(affinity: Float[Array, "b n n"], labels: UInt8[Array, "b n n"]) -> Float[Array, ""]:
    """Computes L_aff: half the mean of 1 - R_a over positive pairs plus half that of R_a over negative ones (Eq. 13).

    Args:
      affinity: float [B, N, N] in [0, 1].
      labels: [B, N, N], 1 positive, 0 negative, 255 ignored (`rml_jax.ops.affinity_labels`).

    Returns:
      float32 scalar in [0, 1]; a half without pairs counts 0.
    """
    return 0.5 * (masked_mean(1 - affinity, labels == 1) + masked_mean(affinity, labels == 0))


def apml(
    pair: Pair, beta2: float, affinity_weight: float = 1.0
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Computes L_APML: L_aff of both views plus beta2 times L_mi (Eq. 14).

    L_mi = -(I(y; R_a) + I(y'; R'_a) - 2 I(R_a; R'_a)) follows from Eqs. 9 to 11; Eq. 12 as printed is zero
    (docs/method.md, Eq. 12). R_a and R'_a are compared after A has acted on both axes of R_a, over pairs that are
    labelled in the warped view.

    Args:
      pair: `affinity_logits` of both views, both affinity labels, `matrix` and `valid` are used.
      beta2: weight of L_mi, in nats.
      affinity_weight: weight of L_aff; 1 in the paper, 0 in its ablation.

    Returns:
      float32 scalar, and its parts `affinity`, `information_affinity_label` and `information_affinity_pair`.
    """
    labels, warped_labels = pair.affinity_labels, pair.warped_affinity_labels
    affinity, warped_affinity = (
        jax.nn.sigmoid(view.affinity_logits) for view in (pair.original, pair.warped)
    )
    contrast = affinity_loss(affinity, labels) + affinity_loss(warped_affinity, warped_labels)
    moved = jnp.einsum("bij,bjk,blk->bil", pair.matrix, affinity, pair.matrix)
    flat = pair.valid.reshape(pair.valid.shape[0], -1)
    comparable = (warped_labels != IGNORE) & flat[:, :, None] & flat[:, None, :]
    with_label = _label_information(affinity, labels) + _label_information(warped_affinity, warped_labels)
    shared = mutual_information(bernoulli(moved), bernoulli(warped_affinity), comparable)
    information = -(with_label - 2 * shared)
    parts = {
        "affinity": contrast,
        "information_affinity_label": with_label,
        "information_affinity_pair": shared,
    }
    return affinity_weight * contrast + beta2 * information, parts


def _label_information(affinity, labels):
    return mutual_information(
        bernoulli(affinity), bernoulli((labels == 1).astype(jnp.float32)), labels != IGNORE
    )
