"""L_CIML: equivariant CAMs and distinct class prototypes (Eqs. 2 to 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from rml_jax.losses.common import TINY, masked_mean
from rml_jax.ops.cam import class_activation_maps

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

    from rml_jax.losses.pair import Pair


def equivariance_distance(
    cams: Float[Array, "b h w c"],
    warped_cams: Float[Array, "b h w c"],
    tags: Float[Array, "b c"],
    matrix: Float[Array, "b n n"],
    valid: Bool[Array, "b h w"],
) -> Float[Array, ""]:
    """Computes D_equ, the mean |A(M) - M'| over valid cells and tagged classes (Eq. 2).

    Args:
      cams, warped_cams: float [B, h, w, C] in [0, 1], of the original and the warped view.
      tags: 0/1 [B, C].
      matrix: float [B, N, N], A on the cells (`rml_jax.ops.warp_matrix`); N = h * w.
      valid: bool [B, h, w], cells of the warped view that show the original.

    Returns:
      float32 scalar in [0, 1].
    """
    flat = cams.reshape(cams.shape[0], -1, cams.shape[-1])
    moved = jnp.einsum("bij,bjc->bic", matrix, flat).reshape(cams.shape)
    return masked_mean(jnp.abs(moved - warped_cams), valid[..., None] * tags[:, None, None, :])


def prototypes(
    cams: Float[Array, "b h w c"], features: Float[Array, "b h w d"], tags: Float[Array, "b c"]
) -> Float[Array, "c d"]:
    """Computes one unit vector per class: the CAM-weighted mean of the features over the batch (Eq. 3).

    Args:
      cams: float [B, h, w, C] in [0, 1].
      features: float [B, h, w, D].
      tags: 0/1 [B, C]; an image contributes to its own classes only.

    Returns:
      float32 [C, D]; the zero vector for a class that no image has.
    """
    weighted = jnp.einsum("bhwc,bhwd->cd", cams * tags[:, None, None, :], features)
    # Adding under the root rather than to the norm keeps the gradient at 0 finite.
    return weighted * jax.lax.rsqrt(jnp.sum(jnp.square(weighted), axis=-1, keepdims=True) + TINY)


def prototype_similarity(vectors: Float[Array, "c d"], tags: Float[Array, "b c"]) -> Float[Array, ""]:
    """Computes the mean cosine between the prototypes of different classes in the batch (Eqs. 3 and 4).

    Args:
      vectors: float [C, D], of unit length.
      tags: 0/1 [B, C].

    Returns:
      float32 scalar in [-1, 1]; 0 where fewer than two classes are present.
    """
    present = jnp.max(tags, axis=0)
    pairs = present[:, None] * present[None, :] * (1 - jnp.eye(len(present)))
    return masked_mean(vectors @ vectors.T, pairs)


def ciml(pair: Pair, alpha: float) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Computes L_CIML: D_equ plus alpha times the prototype similarity of both views (Eq. 4).

    Args:
      pair: `cam_logits` and `features` of both views, `tags`, `matrix` and `valid` are used.
      alpha: weight of the prototype term.

    Returns:
      float32 scalar, and its parts `equivariance` and `prototype_similarity`.
    """
    views = (pair.original, pair.warped)
    cams, warped_cams = (class_activation_maps(view.cam_logits) for view in views)
    distance = equivariance_distance(cams, warped_cams, pair.tags, pair.matrix, pair.valid)
    similarity = sum(
        prototype_similarity(prototypes(maps, view.features, pair.tags), pair.tags)
        for maps, view in zip((cams, warped_cams), views, strict=True)
    )
    return distance + alpha * similarity, {"equivariance": distance, "prototype_similarity": similarity}
