"""From stored pictures to the network's input (METHOD.md section 5)."""

import jax.numpy as jnp

from rml_jax.ops.affine import box_mask

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize(images, box=None):
    """Pictures as the network takes them.

    Args:
      images: uint8 [B, H, W, 3].
      box: int [B, 4], top, left, bottom, right of the real pixels; the rest becomes the mean colour. None if
        all pixels are real.

    Returns:
      float32 [B, H, W, 3], with ImageNet's mean taken off and divided by its deviation.
    """
    normalized = (images.astype(jnp.float32) / 255.0 - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD)
    if box is None:
        return normalized
    size = images.shape[1:3]
    return jnp.where(box_mask(box, size, size)[..., None], normalized, 0.0)
