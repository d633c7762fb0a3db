"""Class activation maps (CAMs; METHOD.md sections 3, 4 and 6)."""

import jax
import jax.numpy as jnp

from rml_jax.labels import BACKGROUND
from rml_jax.ops.resize import resize_bilinear

EPSILON = 1e-5


def min_max_normalize(maps):
    """Scales every map to [0, 1]: its minimum taken off, then divided by its maximum + 1e-5 (Eq. 1).

    Args:
      maps: float [B, H, W, C], each image and class on its own.

    Returns:
      [B, H, W, C]. A constant map becomes 0.
    """
    maps = maps - maps.min(axis=(1, 2), keepdims=True)
    return maps / (maps.max(axis=(1, 2), keepdims=True) + EPSILON)


def class_activation_maps(cam_logits):
    """Single-scale CAMs of Eq. 1: ReLU, then min-max scaled to [0, 1].

    Args:
      cam_logits: float [B, h, w, C], the classifier's scores of every cell.

    Returns:
      [B, h, w, C] in [0, 1].
    """
    return min_max_normalize(jax.nn.relu(cam_logits))


def scaled_size(size, scale, stride):
    """The size of a picture at another scale, at least one cell of `stride` pixels a side."""
    return tuple(max(stride, round(side * scale)) for side in size)


def multi_scale_cam(classify, images, *, scales, flip, stride):
    """Multi-scale, flipped CAMs at the pictures' resolution (METHOD.md section 4).

    Per scale: the maximum of the map and its un-flipped mirror, ReLU, resized to the picture. The sum over
    scales is min-max scaled per image and class.

    Args:
      classify: function of images [B', H', W', 3] giving class logits [B', C] and CAM logits [B', h, w, C]. Where
        mirrored pictures take part, B' = 2 B, each picture followed by its mirror.
      images: float [B, H, W, 3], normalised.
      scales: factors on the picture's size.
      flip: whether mirrored pictures take part.
      stride: pixels per cell of the network's last grid.

    Returns:
      maps float32 [B, H, W, C] in [0, 1], not yet restricted to any tags.
    """
    size = images.shape[1:3]
    total = 0.0
    for scale in scales:
        scaled = resize_bilinear(images, scaled_size(size, scale, stride))
        if flip:
            # Side by side, so that a batch that is split over devices stays split.
            both = jnp.stack([scaled, scaled[:, :, ::-1]], axis=1)
            _, maps = classify(both.reshape(-1, *both.shape[2:]))
            maps = maps.reshape(-1, 2, *maps.shape[1:])
            maps = jnp.maximum(maps[:, 0], maps[:, 1, :, ::-1])
        else:
            _, maps = classify(scaled)
        total += resize_bilinear(jax.nn.relu(maps.astype(jnp.float32)), size)
    return min_max_normalize(total)


def cam_to_labels(cams, tags, background):
    """A mask from CAMs: the best tagged class, background where its score is <= `background`.

    Args:
      cams: float [B, H, W, C] in [0, 1].
      tags: bool or 0/1 [B, C], the classes allowed in each image.
      background: score of the background (METHOD.md section 6: 0.45 on VOC).

    Returns:
      int32 [B, H, W], 0 background, 1..C classes.
    """
    allowed = cams * tags[:, None, None, :]
    return jnp.where(allowed.max(axis=-1) > background, allowed.argmax(axis=-1) + 1, BACKGROUND)


def with_background(cams, used, background):
    """Softmax over a background score and the CAMs of the allowed classes (METHOD.md sections 4 and 6).

    Args:
      cams: float [B, H, W, K] in [0, 1].
      used: bool [B, K]; the others get probability 0.
      background: score of the background.

    Returns:
      float32 [B, H, W, 1 + K], background first. It is the largest where no allowed CAM exceeds `background`.
    """
    usable = jnp.where(used[:, None, None, :], cams, -jnp.inf)
    return jax.nn.softmax(
        jnp.concatenate([jnp.full_like(cams[..., :1], background), usable], axis=-1), axis=-1
    )
