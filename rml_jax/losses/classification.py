"""L_cls, the classification loss on image-level tags (Eq. 15)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from rml_jax.losses.common import binary_cross_entropy

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


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


def joined_soft_margin(
    logits: Float[Array, "2 b c"],
    tags: Float[Array, "2 b c"],
    shown: Bool[Array, "2 b"],
    joined: Bool[Array, " b"],
) -> Float[Array, ""]:
    """Computes L_cls of a batch in which some images are joined of two (docs/method.md, Joined images).

    Of a joined image, each part counts with the classes that its source lacks. Whether a part shows a class that its
    source has is not known.

    Args:
      logits: float [2, B, C], of the part that keeps the image and of the part that shows its partner.
      tags: 0/1 [2, B, C], of the image and of its partner.
      shown: bool [2, B], whether the part shows anything but padding.
      joined: bool [B]; the first logits and tags of the others are those of the whole image.

    Returns:
      float32 scalar, in nats. `multilabel_soft_margin` of the first logits where no image is joined.
    """
    whole = jnp.array([1.0, 0.0])[:, None, None]
    absent = (1 - tags) * shown[..., None] / 2
    weights = jnp.where(joined[:, None], absent, whole)
    return jnp.mean(jnp.sum(weights * binary_cross_entropy(logits, tags), axis=0))
