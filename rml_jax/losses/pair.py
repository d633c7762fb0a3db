"""The two views of each image and the geometry between them, the input of the losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax

from rml_jax.ops.affine import validity, warp_labels, warp_matrix
from rml_jax.ops.affinity import affinity_labels
from rml_jax.ops.region import box_mask
from rml_jax.ops.resize import resize_nearest

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, UInt8

    from rml_jax.models import RMLOutputs


class Pair(NamedTuple):
    """Both views of a batch. "Warped" is the image after the transform A, or a map of it.

    h x w is the grid of the backbone's last stage, N = h * w its cells, H1 x W1 the grid of the first stage. `valid`
    and `valid_context` exclude pixels that A moves into the image from outside.

    Attributes:
      original, warped: outputs of the network for the two views.
      tags: 0/1 [B, C].
      theta: [B, 2, 3], A as parameters (`rml_jax.ops.affine`).
      matrix: [B, N, N], A as a matrix over the cells (`warp_matrix`).
      valid: [B, h, w], cells of the warped view that show the original.
      valid_context: [B, H1, W1], the same on the grid of the context R_c.
      labels, warped_labels: [B, h, w], pseudo labels: 0 background, 1..C classes, 255 ignore.
      affinity_labels, warped_affinity_labels: [B, N, N], 1 same label, 0 different labels, 255 ignore.
    """

    original: RMLOutputs
    warped: RMLOutputs
    tags: Float[Array, "b c"]
    theta: Float[Array, "b 2 3"]
    matrix: Float[Array, "b n n"]
    valid: Bool[Array, "b h w"]
    valid_context: Bool[Array, "b h1 w1"]
    labels: Int[Array, "b h w"]
    warped_labels: Int[Array, "b h w"]
    affinity_labels: UInt8[Array, "b n n"]
    warped_affinity_labels: UInt8[Array, "b n n"]


def make_pair(
    outputs: RMLOutputs,
    labels: Int[Array, "b s s"],
    tags: Float[Array, "b c"],
    box: Int[Array, "b 4"],
    theta: Float[Array, "b 2 3"],
    radius: int,
) -> Pair:
    """Computes the inputs that the losses share.

    Args:
      outputs: RMLOutputs with a leading axis of 2, the original and the warped view.
      labels: int [B, S, S], pseudo labels of the original, one per pixel.
      tags: 0/1 [B, C].
      box: int [B, 4], top, left, bottom, right of the real pixels, half-open.
      theta: float [B, 2, 3], the transform A.
      radius: largest distance of a pair with an affinity label, in cells.

    Returns:
      Pair.
    """
    original, warped = (jax.tree.map(lambda x, i=i: x[i], outputs) for i in (0, 1))
    canvas, grid, context_grid = (
        labels.shape[1:3],
        original.cam_logits.shape[1:3],
        original.context.shape[1:3],
    )
    cells = resize_nearest(labels, grid)
    warped_cells = resize_nearest(warp_labels(labels, theta), grid)
    return Pair(
        original=original,
        warped=warped,
        tags=tags,
        theta=theta,
        matrix=warp_matrix(theta, grid),
        valid=validity(theta, box_mask(box, grid, canvas)),
        valid_context=validity(theta, box_mask(box, context_grid, canvas)),
        labels=cells,
        warped_labels=warped_cells,
        affinity_labels=affinity_labels(cells, radius),
        warped_affinity_labels=affinity_labels(warped_cells, radius),
    )
