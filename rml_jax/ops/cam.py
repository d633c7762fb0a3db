"""Class activation maps (CAMs): Eq. 1 of the paper; docs/method.md, Pseudo labels."""

from __future__ import annotations

import fractions
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from rml_jax.labels import BACKGROUND
from rml_jax.ops.extremes import spatial_max, spatial_min
from rml_jax.ops.grid import ceil_div
from rml_jax.ops.region import blank_outside, inside, mirror_inside, resize_inside

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Array, Bool, Float, Int, Num, PyTree, Shaped

_EPSILON = 1e-5


def min_max_normalize(
    maps: Float[Array, "b h w c"],
    sizes: Int[Array, "b 2"] | None = None,
    extremes: tuple[Float[Array, "b c"], Float[Array, "b c"]] | None = None,
) -> Float[Array, "b h w c"]:
    """Scales every map to [0, 1]: subtracts its minimum, then divides by its maximum + 1e-5 (Eq. 1).

    Args:
      maps: float [B, H, W, C], each image and class on its own.
      sizes: int32 [B, 2], true height and width of images in the top left corner; None if they fill the maps.
      extremes: least and greatest values to scale by, float [B, C] each, of larger maps that these are tiles of; None
        takes the maps' own.

    Returns:
      [B, H, W, C], 0 outside the images. A constant map becomes 0.
    """
    least = _least(maps, sizes) if extremes is None else extremes[0]
    maps = maps - least[:, None, None]
    # Both branches give the same numbers; gradients flow through the maximum of the shifted maps.
    spread = _greatest(maps, sizes) if extremes is None else extremes[1] - least
    return blank_outside(maps / (spread[:, None, None] + _EPSILON), sizes)


def map_extremes(
    maps: Float[Array, "b h w c"], sizes: Int[Array, "b 2"] | None = None
) -> tuple[Float[Array, "b c"], Float[Array, "b c"]]:
    """Computes the least and the greatest value of every map within its image.

    Args:
      maps: float [B, H, W, C].
      sizes: see `min_max_normalize`.

    Returns:
      [B, C] each.
    """
    return _least(maps, sizes), _greatest(maps, sizes)


def _least(maps, sizes):
    return spatial_min(_filled_outside(maps, sizes, jnp.inf))


def _greatest(maps, sizes):
    return spatial_max(_filled_outside(maps, sizes, -jnp.inf))


def _filled_outside(maps, sizes, value):
    return maps if sizes is None else jnp.where(inside(sizes, maps.shape[1:3])[..., None], maps, value)


def class_activation_maps(cam_logits: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Computes the single-scale CAMs of Eq. 1: ReLU, then min-max scaled to [0, 1].

    Args:
      cam_logits: float [B, h, w, C], the classifier's scores of every cell.

    Returns:
      [B, h, w, C] in [0, 1].
    """
    return min_max_normalize(jax.nn.relu(cam_logits))


def multi_scale_cam(
    classify: Callable,
    images: Float[Array, "b h w 3"],
    *,
    scales: Sequence[float],
    flip: bool,
    stride: int,
    sizes: Int[Array, "b 2"] | None = None,
) -> Float[Array, "b h w c"]:
    """Computes multi-scale, flipped CAMs at the images' resolution (docs/method.md, Pseudo labels).

    Per scale: the maximum of the map and its un-flipped mirror, ReLU, resized to the image. The sum over scales is
    min-max scaled per image and class.

    Args:
      classify: see `cam_sum`.
      images: float [B, H, W, 3], normalised.
      scales: factors on the image's size.
      flip: whether to include mirrored images.
      stride: pixels per cell of the network's last grid.
      sizes: see `cam_sum`.

    Returns:
      maps float32 [B, H, W, C] in [0, 1], not yet restricted to any tags.
    """
    _, total = cam_sum(classify, images, scales=scales, flip=flip, stride=stride, sizes=sizes)
    return min_max_normalize(total, sizes)


def cam_sum(
    classify: Callable,
    images: Float[Array, "b h w 3"],
    *,
    scales: Sequence[float],
    flip: bool,
    stride: int,
    sizes: Int[Array, "b 2"] | None = None,
) -> tuple[dict[float, PyTree], Float[Array, "b h w c"]]:
    """Computes `multi_scale_cam` before its min-max scaling, with the network's other outputs at each scale.

    Args:
      classify: function of images [B', H', W', 3] and, if `sizes` is given, of their sizes int32 [B', 2]. It returns
        any outputs with leading axis B', such as the class logits, and CAM logits [B', h, w, C]. With mirrored
        images, B' = 2 B, each image followed by its mirror.
      images: float [B, H, W, 3], normalised. H and W may be symbolic (`jax.export`) if `sizes` is given and they are
        multiples of `symbolic_step`.
      scales, flip, stride: see `multi_scale_cam`.
      sizes: int32 [B, 2], true height and width of images in the top left corner of the canvas; None if they fill it.

    Returns:
      Dict from each scale to the outputs for the images (not for their mirrors), and maps float32 [B, H, W, C].
    """
    canvas = images.shape[1:3]
    outputs, total = {}, 0.0
    for scale in scales:
        new_canvas = scaled_size(canvas, scale, stride)
        new_sizes = None if sizes is None else _scaled_sizes(sizes, canvas, scale, stride)
        scaled = images
        if sizes is None or scale != 1:
            scaled = resize_inside(images, sizes, new_canvas, new_sizes)
        views = [scaled, mirror_inside(scaled, new_sizes)] if flip else [scaled]
        view_sizes = () if sizes is None else (_interleave([new_sizes] * len(views)),)
        results = classify(_interleave(views), *view_sizes)
        outputs[scale], cam_logits = _view(results, 0, len(views))
        grid_sizes = None if sizes is None else ceil_div(new_sizes, stride)
        if flip:
            _, mirrored = _view(results, 1, 2)
            cam_logits = jnp.maximum(cam_logits, mirror_inside(mirrored, grid_sizes))
        total += resize_inside(jax.nn.relu(cam_logits.astype(jnp.float32)), grid_sizes, canvas, sizes)
    return outputs, total


def _interleave(views: list[Shaped[Array, "b ..."]]) -> Shaped[Array, "b2 ..."]:
    """Places the views of each image side by side, so that a batch split over devices stays split."""
    if len(views) == 1:
        return views[0]
    return jnp.stack(views, axis=1).reshape(-1, *views[0].shape[1:])


def _view(results, number, count):
    """Returns every array's entries for one of `count` views."""
    return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:])[:, number], results)


def scaled_size(size: Sequence[int], scale: float, stride: int) -> tuple[int, ...]:
    """Returns the size of an image at another scale, at least one cell of `stride` pixels per side.

    Args:
      size: lengths in pixels. They may be symbolic (`jax.export`), as multiples of `symbolic_step`.
      scale: factor on the lengths.
      stride: pixels per cell.
    """
    if _is_symbolic(size):
        factor = _fraction(scale)
        return tuple(side * factor.numerator // factor.denominator for side in size)
    return tuple(max(stride, round(side * scale)) for side in size)


def _scaled_sizes(sizes, canvas, scale, stride):
    """Computes `scaled_size` of traced sizes, rounded half to even as in Python."""
    if _is_symbolic(canvas):
        factor = _fraction(scale)
        low, rest = jnp.divmod(sizes * factor.numerator, factor.denominator)
        up = (2 * rest > factor.denominator) | ((2 * rest == factor.denominator) & (low % 2 == 1))
        return jnp.maximum(stride, low + up)
    return jnp.array(scaled_size(range(max(canvas) + 1), scale, stride), jnp.int32)[sizes]


def symbolic_step(scales: Sequence[float], stride: int) -> int:
    """Returns the number that symbolic sides of a canvas must be multiples of, so that no scale leaves a remainder.

    Args:
      scales: factors on the sides.
      stride: pixels per cell.

    Returns:
      int, in pixels.
    """
    return stride * math.lcm(*(_fraction(scale).denominator for scale in scales))


def _fraction(scale):
    return fractions.Fraction(scale).limit_denominator(64)


def _is_symbolic(size):
    return not all(isinstance(side, int) for side in size)


def cam_to_labels(
    cams: Float[Array, "b h w c"], tags: Num[Array, "b c"] | Bool[Array, "b c"], background: float
) -> Int[Array, "b h w"]:
    """Computes a mask from CAMs: the tagged class with the highest score, or background if that is <= `background`.

    Args:
      cams: float [B, H, W, C] in [0, 1].
      tags: bool or 0/1 [B, C], the classes allowed in each image.
      background: score of the background (docs/method.md, Inference and evaluation; 0.45 on VOC).

    Returns:
      int32 [B, H, W], 0 background, 1..C classes.
    """
    allowed = cams * tags[:, None, None, :]
    return jnp.where(allowed.max(axis=-1) > background, allowed.argmax(axis=-1) + 1, BACKGROUND)


def with_background(
    cams: Float[Array, "b h w k"], used: Bool[Array, "b k"], background: float | Float[Array, "*b_1_1_1"]
) -> Float[Array, "b h w k+1"]:
    """Computes a softmax over a background score and the CAMs of the allowed classes.

    Source: docs/method.md, Pseudo labels.

    Args:
      cams: float [B, H, W, K] in [0, 1].
      used: bool [B, K]; the others get probability 0.
      background: score of the background, a scalar or, one for each image, [B, 1, 1, 1].

    Returns:
      float32 [B, H, W, 1 + K], background first. It is the largest where no allowed CAM exceeds `background`.
    """
    usable = jnp.where(used[:, None, None, :], cams, -jnp.inf)
    return jax.nn.softmax(
        jnp.concatenate([jnp.full_like(cams[..., :1], background), usable], axis=-1), axis=-1
    )
