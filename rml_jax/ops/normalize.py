"""Normalisation of images for the network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from rml_jax.ops.region import box_mask

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, UInt8

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize(
    images: UInt8[Array, "b h w 3"], box: Int[Array, "b 4"] | None = None
) -> Float[Array, "b h w 3"]:
    """Normalises images as the network takes them: subtracts ImageNet's mean, divides by its standard deviation.

    Args:
      images: uint8 [B, H, W, 3].
      box: int [B, 4], top, left, bottom, right of the real pixels; the rest becomes the mean colour. None if
        all pixels are real.

    Returns:
      float32 [B, H, W, 3].
    """
    normalized = (images.astype(jnp.float32) / 255.0 - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD)
    if box is None:
        return normalized
    size = images.shape[1:3]
    return jnp.where(box_mask(box, size, size)[..., None], normalized, 0.0)
