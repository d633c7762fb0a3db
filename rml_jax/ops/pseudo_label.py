"""Pseudo labels from CAMs, the only pixel-level supervision (docs/method.md, Pseudo labels)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from rml_jax.labels import BACKGROUND, IGNORE
from rml_jax.ops.cam import with_background
from rml_jax.ops.contrast import OFFSETS, choose_score, region_contrast
from rml_jax.ops.par import DILATIONS, ITERATIONS, par
from rml_jax.ops.region import box_mask
from rml_jax.ops.resize import resize_bilinear

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Array, Bool, Float, Int, Num


@dataclasses.dataclass(frozen=True)
class PseudoLabelConfig:
    """Settings of pseudo labels; the defaults were chosen on VOC (docs/method.md, Pseudo labels).

    Attributes:
      high: background score that foreground must exceed.
      low: background score that background must stay below.
      slots: number of classes that are refined per image. An image with more tags keeps its first ones; training
        raises the number so that no image has more (`rml_jax.data.summary.with_slots`).
      dilations: PAR's dilations, in pixels of the image at half size.
      iterations: PAR's iterations.
      region_contrast: weight of the contrast by which each image's scores are chosen around `high` and `low`, their
        distance unchanged (docs/method.md, Region contrast). 0 uses them as they are.
    """

    high: float = 0.55
    low: float = 0.35
    slots: int = 8
    dilations: tuple[int, ...] = DILATIONS
    iterations: int = ITERATIONS
    region_contrast: float = 0.0


def tagged_slots(
    tags: Num[Array, "b c"] | Bool[Array, "b c"], slots: int
) -> tuple[Int[Array, "b k"], Bool[Array, "b k"]]:
    """Puts the tagged classes of each image into a fixed number of slots, so that only these are refined.

    Args:
      tags: bool or 0/1 [B, C].
      slots: K <= C.

    Returns:
      classes: int32 [B, K], the class of each slot, the tagged ones first.
      used: bool [B, K], whether the slot holds a tagged class.
    """
    tagged, classes = jax.lax.top_k(tags.astype(jnp.float32), slots)
    return classes, tagged > 0


def gather_classes(maps: Float[Array, "b h w c"], classes: Int[Array, "b k"]) -> Float[Array, "b h w k"]:
    """Returns the maps [B, H, W, K] of each image's classes, int [B, K], from maps [B, H, W, C]."""
    return jnp.take_along_axis(maps, classes[:, None, None, :], axis=-1)


def refine_with_background(
    cams: Float[Array, "b h w k"],
    used: Bool[Array, "b k"],
    images: Float[Array, "b h w 3"],
    background: Sequence[float],
    *,
    dilations: Sequence[int],
    iterations: int,
) -> Float[Array, "b h w t k+1"]:
    """Computes softmaxes over background and classes for several background scores, refined by PAR in one pass.

    Args:
      cams: float [B, H, W, K] in [0, 1].
      used: bool [B, K]; the others get probability 0.
      images: float [B, H, W, 3], colours in 0..255.
      background: the T background scores to try.
      dilations, iterations: see `par`.

    Returns:
      float32 [B, H, W, T, 1 + K], the refined probabilities, background first.
    """
    scores = [with_background(cams, used, score) for score in background]
    refined = par(images, jnp.concatenate(scores, axis=-1), dilations=dilations, iterations=iterations)
    return refined.reshape(*cams.shape[:3], len(scores), -1)


def pseudo_labels(
    cams: Float[Array, "b h w c"],
    images: Float[Array, "b h w 3"],
    tags: Num[Array, "b c"] | Bool[Array, "b c"],
    box: Int[Array, "b 4"],
    config: PseudoLabelConfig,
) -> Int[Array, "b h w"]:
    """Computes a label per pixel where the CAMs are confident, 255 elsewhere (docs/method.md, Pseudo labels).

    A pixel is foreground if it is foreground with the high background score, and background if it is background with
    both. Other pixels and those outside the image's box are ignored. No gradient passes.

    Args:
      cams: float [B, H, W, C] in [0, 1], from `multi_scale_cam`.
      images: float [B, H, W, 3], colours in 0..255.
      tags: bool or 0/1 [B, C].
      box: int [B, 4], top, left, bottom, right of the real pixels, half-open.
      config: PseudoLabelConfig.

    Returns:
      int32 [B, H, W]: 0 background, 1..C classes, 255 ignore.
    """
    classes, used = tagged_slots(tags, min(config.slots, cams.shape[-1]))
    return slot_pseudo_labels(gather_classes(cams, classes), classes, used, images, box, config)


def slot_pseudo_labels(
    maps: Float[Array, "b h w k"],
    classes: Int[Array, "b k"],
    used: Bool[Array, "b k"],
    images: Float[Array, "b h w 3"],
    box: Int[Array, "b 4"],
    config: PseudoLabelConfig,
) -> Int[Array, "b h w"]:
    """Computes `pseudo_labels` from the maps of the tagged classes alone.

    Args:
      maps: float [B, H, W, K] in [0, 1], the CAMs of `classes`.
      classes, used: see `tagged_slots`.
      images, box, config: see `pseudo_labels`.

    Returns:
      int32 [B, H, W]: 0 background, 1..C classes, 255 ignore.
    """
    size = maps.shape[1:3]
    half = tuple(max(1, side // 2) for side in size)
    refine = _refined_at_chosen_scores if config.region_contrast else _refined
    real = box_mask(box, half, size)
    refined = refine(resize_bilinear(maps, half), used, resize_bilinear(images, half), real, config)
    full = resize_bilinear(refined.reshape(*refined.shape[:3], -1), size)
    against_high, against_low = jnp.moveaxis(full.reshape(*full.shape[:3], 2, -1).argmax(axis=-1), -1, 0)
    foreground = (
        jnp.take_along_axis(classes[:, None, None, :], against_high[..., None] - 1, axis=-1)[..., 0] + 1
    )
    labels = jnp.where(against_high > 0, foreground, jnp.where(against_low > 0, IGNORE, BACKGROUND))
    labels = jnp.where(box_mask(box, size, size), labels, IGNORE)
    return jax.lax.stop_gradient(labels)


def _refined(maps, used, images, real, config):
    """Computes the refined probabilities at the high and the low background score, [B, h, w, 2, 1 + K]."""
    return _refine(maps, used, images, (config.high, config.low), config)


def _refined_at_chosen_scores(maps, used, images, real, config):
    """Computes the same as `_refined` at scores that are chosen for each image."""
    middle, margin = (config.high + config.low) / 2, (config.high - config.low) / 2
    # Rounded, since most scores of one choice are scores of another, too.
    triples = np.round([[middle + offset + step * margin for step in (1, 0, -1)] for offset in OFFSETS], 4)
    scores, places = np.unique(triples, return_inverse=True)
    high, at, low = places.reshape(triples.shape).T
    refined = _refine(maps, used, images, scores, config)
    masks = jnp.moveaxis(refined[:, :, :, at].argmax(axis=-1), -1, 0)
    contrast = region_contrast(masks, images, real, refined.shape[-1])
    _, chosen = choose_score(contrast.T, triples[:, 1], middle, config.region_contrast)
    outer = jnp.stack([jnp.asarray(high)[chosen], jnp.asarray(low)[chosen]], axis=1)
    return jnp.take_along_axis(refined, outer[:, None, None, :, None], axis=3)


def _refine(maps, used, images, scores, config):
    return refine_with_background(
        maps, used, images, scores, dilations=config.dilations, iterations=config.iterations
    )
