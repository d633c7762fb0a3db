"""Affinity between pairs of cells: labels, and propagation by a random walk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from rml_jax.labels import IGNORE

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, UInt8


def within_radius(size: tuple[int, int], radius: int) -> np.ndarray:
    """Computes which pairs of cells lie within a radius of each other (Chebyshev distance).

    Args:
      size: (height, width) of the grid; N = height * width.
      radius: greatest distance along either axis, in cells.

    Returns:
      NumPy bool [N, N], symmetric, true on the diagonal.
    """
    rows, columns = np.unravel_index(np.arange(size[0] * size[1]), size)
    far_down = np.abs(rows[:, None] - rows[None, :])
    far_across = np.abs(columns[:, None] - columns[None, :])
    return np.maximum(far_down, far_across) <= radius


def affinity_labels(labels: Int[Array, "b h w"], radius: int) -> UInt8[Array, "b n n"]:
    """Computes whether pairs of cells carry the same label (docs/method.md, Affinity).

    Args:
      labels: integers [B, h, w], 255 = ignore; N = h * w.
      radius: greatest distance of a pair, in cells.

    Returns:
      uint8 [B, N, N]: 1 for equal labels, 0 for different ones, 255 if either is ignored or the cells lie farther
      apart than the radius.
    """
    flat = labels.reshape(labels.shape[0], -1)
    first, second = flat[:, :, None], flat[:, None, :]
    known = (first != IGNORE) & (second != IGNORE) & within_radius(labels.shape[1:], radius)
    return jnp.where(known, first == second, IGNORE).astype(jnp.uint8)


def random_walk(
    scores: Float[Array, "b h w k"], affinity: Float[Array, "b n n"], radius: int
) -> Float[Array, "b h w k"]:
    """Propagates scores by one step of a random walk along the affinity, as in AFA (Ru et al. 2022).

    The transition from cell i to j is proportional to affinity_ij squared, for cells within the radius, and
    the columns are normalised: a cell's new scores are a mean of its neighbours' scores. Source: docs/method.md,
    Inference and evaluation.

    Args:
      scores: float [B, h, w, K], for example probabilities of background and classes.
      affinity: float [B, N, N] in [0, 1], N = h * w.
      radius: greatest distance of a step, in cells.

    Returns:
      [B, h, w, K].
    """
    batch, height, width, channels = scores.shape
    transition = jnp.square(affinity) * within_radius((height, width), radius)
    # Sigmoids far below zero can underflow to a column of zeros; such a cell keeps its scores.
    transition += jnp.eye(height * width) * jnp.finfo(jnp.float32).tiny
    transition /= transition.sum(axis=1, keepdims=True)
    walked = jnp.einsum("bij,bik->bjk", transition, scores.reshape(batch, -1, channels))
    return walked.reshape(scores.shape)
