"""The losses of RML in PyTorch, all in float32; `warped` is the view transformed by A.

They are an independent counterpart of `rml_jax.losses`, after docs/method.md.
"""

import torch
import torch.nn.functional as F

from tests.references.torch_ops import IGNORE, min_max_normalize, warp, warp_pairs

_TINY = 1e-12


def masked_mean(values, mask):
    """Computes the mean of [...] where a broadcastable mask is true; 0 if it is true nowhere."""
    mask = mask.expand_as(values).float()
    return (values * mask).sum() / mask.sum().clamp_min(_TINY)


def mutual_information(first, second, weight):
    """Computes the mutual information of two discrete variables by a soft joint histogram, in nats.

    Args:
      first: float [K, ...], p(k|x) of every sample.
      second: float [L, ...], q(l|x) of the same samples.
      weight: bool [...], the samples that count.

    Returns:
      float32 scalar.
    """
    joint = (first * weight).flatten(1) @ second.flatten(1).T / weight.sum().clamp_min(1)
    independent = torch.outer(joint.sum(dim=1), joint.sum(dim=0))
    # The bounds keep the gradient finite where a probability is 0.
    return (joint * (joint.clamp_min(_TINY) / independent.clamp_min(_TINY)).log()).sum()


def _binary(probability):
    return torch.stack([1 - probability, probability])


def ciml_loss(view, warped, tags, grid, valid, alpha):
    """Computes L_CIML: equivariance of the CAMs plus alpha times the similarity of prototypes (Eqs. 2 to 4).

    Args:
      view, warped: Outputs of the original and the transformed view.
      tags: 0/1 [B, C].
      grid: [B, h, w, 2], A on stage 4's grid.
      valid: bool [B, h, w], cells of the transformed view that show the original.
      alpha: weight of the prototype term.

    Returns:
      float32 scalar, and a dict with its parts.
    """
    cams, warped_cams = (min_max_normalize(v.cam_logits.relu()) for v in (view, warped))
    counted = tags[:, :, None, None] * valid[:, None]
    equivariance = masked_mean((warp(cams, grid) - warped_cams).abs(), counted)
    similarity = prototype_similarity(cams, view.features, tags) + prototype_similarity(
        warped_cams, warped.features, tags
    )
    parts = {"equivariance": equivariance, "prototype_similarity": similarity}
    return equivariance + alpha * similarity, parts


def prototype_similarity(cams, features, tags):
    """Computes the mean cosine between the prototypes of different classes in the batch (Eqs. 3 and 4).

    A class's prototype is the mean of the features [B, D, h, w] weighted by its CAMs [B, C, h, w].
    """
    prototypes = torch.einsum("bchw,bdhw->cd", cams * tags[:, :, None, None], features)
    prototypes = F.normalize(prototypes, dim=1)
    present = tags.amax(dim=0)
    pairs = torch.outer(present, present).fill_diagonal_(0)
    return masked_mean(prototypes @ prototypes.T, pairs)


def mfml_loss(view, warped, grid, valid, beta1):
    """Computes L_MFML: mean |A(R_c) - R'_c| plus beta1 times I(R_c; R'_c), over valid pixels (Eqs. 6 to 8).

    Args:
      view, warped: Outputs.
      grid: [B, H1, W1, 2], A on stage 1's grid.
      valid: bool [B, H1, W1].
      beta1: weight of the mutual information.

    Returns:
      float32 scalar, and a dict with its parts.
    """
    moved, warped_context = (standardize(c, valid) for c in (warp(view.context, grid), warped.context))
    alignment = masked_mean((moved - warped_context).abs(), valid[:, None])
    variables = (context.softmax(dim=1).transpose(0, 1) for context in (moved, warped_context))
    information = mutual_information(*variables, valid)
    return alignment + beta1 * information, {"alignment": alignment, "information_context": information}


def standardize(context, valid):
    """Scales contexts [B, K, H, W] to mean 0 and deviation 1 over valid pixels [B, H, W], per image and channel."""
    weight = valid[:, None] / valid.sum(dim=(1, 2)).clamp_min(1)[:, None, None, None]
    centred = context - (context * weight).sum(dim=(2, 3), keepdim=True)
    variance = (centred.square() * weight).sum(dim=(2, 3), keepdim=True)
    return centred * torch.rsqrt(variance + 1e-5)


def affinity_labels(labels, cells, radius):
    """Computes which pairs of cells carry the same label (docs/method.md, Affinity).

    Args:
      labels: int64 [B, H, W], 255 = ignore.
      cells: (height, width) of stage 4's grid; N = height * width.
      radius: greatest distance of a pair along either axis, in cells.

    Returns:
      positive: bool [B, N, N], pairs of one label.
      known: bool [B, N, N], pairs within the radius of which neither is ignored.
    """
    flat = F.interpolate(labels[:, None].float(), cells, mode="nearest-exact").flatten(1)
    axes = [torch.arange(side, device=labels.device) for side in cells]
    places = torch.cartesian_prod(*axes)
    near = (places[:, None] - places).abs().amax(dim=2) <= radius
    labelled = flat != IGNORE
    known = labelled[:, :, None] & labelled[:, None] & near
    return known & (flat[:, :, None] == flat[:, None]), known


def apml_loss(view, warped, pairs, warped_pairs, grid, valid, beta2):
    """Computes L_APML: L_aff of both views and the mutual information of affinities (Eqs. 9 to 14).

    L_mi = -(I(y; R_a) + I(y'; R'_a) - 2 I(R_a; R'_a)) (docs/method.md, Eq. 12).

    Args:
      view, warped: Outputs.
      pairs, warped_pairs: `affinity_labels` of each view.
      grid: [B, h, w, 2], A on stage 4's grid.
      valid: bool [B, h, w].
      beta2: weight of the mutual information.

    Returns:
      float32 scalar, and a dict with its parts.
    """
    affinity, warped_affinity = view.affinity_logits.sigmoid(), warped.affinity_logits.sigmoid()
    contrast = affinity_loss(affinity, *pairs) + affinity_loss(warped_affinity, *warped_pairs)
    with_label = label_information(affinity, *pairs) + label_information(warped_affinity, *warped_pairs)
    flat, (_, warped_known) = valid.flatten(1), warped_pairs
    comparable = warped_known & flat[:, :, None] & flat[:, None]
    shared = mutual_information(_binary(warp_pairs(affinity, grid)), _binary(warped_affinity), comparable)
    parts = {
        "affinity": contrast,
        "information_affinity_label": with_label,
        "information_affinity_pair": shared,
    }
    return contrast - beta2 * (with_label - 2 * shared), parts


def affinity_loss(affinity, positive, known):
    """Computes L_aff: half the mean of 1 - R_a over positive pairs plus half that of R_a over negative ones."""
    return (masked_mean(1 - affinity, positive) + masked_mean(affinity, known & ~positive)) / 2


def label_information(affinity, positive, known):
    """Computes I(y; R_a) over the labelled pairs, where y is the affinity label."""
    return mutual_information(_binary(affinity), _binary(positive.float()), known)


def self_training_loss(cam_logits, labels, tags):
    """Computes L_self: cross-entropy of cells' class scores with pseudo labels, classes and background half weighted.

    Args:
      cam_logits: float [B, C, h, w].
      labels: int64 [B, H, W], 255 = ignore.
      tags: 0/1 [B, C].

    Returns:
      float32 scalar.
    """
    cells = F.interpolate(labels[:, None].float(), cam_logits.shape[2:], mode="nearest-exact")
    classes = torch.arange(1, cam_logits.shape[1] + 1, device=labels.device)[None, :, None, None]
    entropy = F.binary_cross_entropy_with_logits(cam_logits, (cells == classes).float(), reduction="none")
    weight = tags / tags.sum(dim=1, keepdim=True).clamp_min(1)
    entropy = (entropy * weight[:, :, None, None]).sum(dim=1)
    cells = cells[:, 0]
    return (masked_mean(entropy, (cells != 0) & (cells != IGNORE)) + masked_mean(entropy, cells == 0)) / 2
