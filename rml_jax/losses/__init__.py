"""The losses of RML (METHOD.md section 3): pure functions of arrays, all in float32.

Two views of each picture take part: the original, and its transform by A, whose arrays are named `twin` here.
What A moves off the canvas, or in from outside, is excluded from every comparison by a validity mask.
"""

import dataclasses

import jax
import jax.numpy as jnp

from rml_jax.labels import BACKGROUND, IGNORE
from rml_jax.ops.affine import warp
from rml_jax.ops.cam import class_activation_maps

LOSS_TERMS = ("loss", "classification", "ciml", "mfml", "apml")  # as the train step names them
_TINY = 1e-12
# Share of the identity in what is inverted.
_RIDGE = 1e-3


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weights of the terms and of their parts (Eqs. 4, 8, 14 and 16; METHOD.md section 3).

    Attributes:
      ciml, mfml, apml: lambda_1 to lambda_3.
      alpha: weight of the prototype term in L_CIML.
      affinity: weight of L_aff in L_APML; 1 in the paper, 0 for its ablation.
      beta1: weight of I(R_c; R'_c) in L_MFML, in nats.
      beta2: weight of L_mi in L_APML, in nats.
      self_training: weight of L_self, which is not the paper's.
    """

    ciml: float = 0.1
    mfml: float = 0.1
    apml: float = 0.1
    alpha: float = 0.1
    affinity: float = 1.0
    beta1: float = 1.0
    beta2: float = 1.0
    self_training: float = 0.0


READINGS = {"classes": ("present", "all"), "prototypes": ("batch", "image"), "gradient": ("both", "twin")}


@dataclasses.dataclass(frozen=True)
class CIMLReading:
    """How Eqs. 2 to 4 are read where the paper leaves it open; the defaults are METHOD.md section 3's.

    Attributes:
      classes: whose CAMs D_equ compares, those of the image's "present" classes or of "all".
      prototypes: whether a class has one in the "batch" or one in every "image" that carries it, which is then
        compared with those of the image's other classes.
      gradient: of D_equ, through "both" views or, with the original's CAMs as fixed targets, the "twin" alone.
    """

    classes: str = "present"
    prototypes: str = "batch"
    gradient: str = "both"


def masked_mean(values, mask):
    """Mean of the values where the mask is true, 0 where it is nowhere true.

    Args:
      values: float [...].
      mask: bool or float weights, broadcastable to `values`.

    Returns:
      float32 scalar.
    """
    mask = jnp.broadcast_to(mask, values.shape).astype(jnp.float32)
    return jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask), _TINY)


def multilabel_soft_margin(logits, tags):
    """L_cls: mean binary cross-entropy with logits over images and classes (Eq. 15, its sign put right).

    Args:
      logits: float [B, C].
      tags: 0/1 [B, C].

    Returns:
      float32 scalar.
    """
    return jnp.mean(_binary_cross_entropy(logits, tags))


def _binary_cross_entropy(logits, targets):
    """Of every logit by itself, with its target in 0..1."""
    return -(targets * jax.nn.log_sigmoid(logits) + (1 - targets) * jax.nn.log_sigmoid(-logits))


# --- Mutual information: Eqs. 7 and 9 to 12 ---


def mutual_information(first, second, weight):
    """Mutual information of two discrete variables, by a soft joint histogram, in nats.

    The plug-in estimate: P_kl is the weighted mean over the samples of p(k|x) q(l|x), and
    I = sum P log(P / (P_k P_l)). 0 for independent variables, the entropy for identical certain ones, at most
    the logarithm of the smaller number of values. METHOD.md section 3.

    Args:
      first: float [..., K], p(k|x) of every sample, summing to 1 over K.
      second: float [..., L], q(l|x) of the same samples.
      weight: bool or float [...], 0 for samples that do not count.

    Returns:
      float32 scalar; 0 where no sample counts.
    """
    first = first.reshape(-1, first.shape[-1]).astype(jnp.float32)
    second = second.reshape(-1, second.shape[-1]).astype(jnp.float32)
    weight = weight.reshape(-1, 1).astype(jnp.float32)
    # Counts of millions of samples must not lose their last digits to TF32 or bf16 products.
    joint = jnp.matmul((first * weight).T, second, precision="highest")
    joint /= jnp.maximum(jnp.sum(weight), _TINY)
    return _sum_p_log_p(joint) - _sum_p_log_p(joint.sum(axis=1)) - _sum_p_log_p(joint.sum(axis=0))


def _sum_p_log_p(probabilities):
    # The bound keeps the gradient finite where a probability is 0.
    return jnp.sum(probabilities * jnp.log(jnp.maximum(probabilities, _TINY)))


def _binary(probability):
    """A binary variable's distribution [..., 2] from the probability [...] of its second value."""
    return jnp.stack([1 - probability, probability], axis=-1)


# --- L_CIML: Eqs. 2 to 4 ---


def equivariance_distance(cams, twin_cams, tags, matrix, valid):
    """D_equ = mean |A(M) - M'| over valid cells and the tagged classes (Eq. 2).

    Args:
      cams, twin_cams: float [B, h, w, C] in [0, 1], of the original and the transformed view.
      tags: 0/1 [B, C].
      matrix: float [B, N, N], A on the cells (`warp_matrix`).
      valid: bool [B, h, w], cells of the transformed view that show the original.

    Returns:
      float32 scalar.
    """
    flat = cams.reshape(cams.shape[0], -1, cams.shape[-1])
    moved = jnp.einsum("bij,bjc->bic", matrix, flat).reshape(cams.shape)
    return masked_mean(jnp.abs(moved - twin_cams), valid[..., None] * tags[:, None, None, :])


def prototypes(cams, features, tags):
    """One unit vector per class: the CAM-weighted mean of the features over the batch (METHOD.md, L_CIML).

    Args:
      cams: float [B, h, w, C] in [0, 1].
      features: float [B, h, w, D].
      tags: 0/1 [B, C]; an image counts for its own tags only.

    Returns:
      float32 [C, D]; the zero vector for a class no image carries.
    """
    weighted = jnp.einsum("bhwc,bhwd->cd", cams * tags[:, None, None, :], features)
    # Adding under the root, not to the norm: the gradient at 0 stays finite.
    return weighted * jax.lax.rsqrt(jnp.sum(jnp.square(weighted), axis=-1, keepdims=True) + _TINY)


def prototype_similarity(vectors, tags):
    """Mean cosine between the prototypes of different classes present in the batch (Eqs. 3 and 4).

    Args:
      vectors: float [C, D], unit length.
      tags: 0/1 [B, C].

    Returns:
      float32 scalar; 0 where fewer than two classes are present.
    """
    present = jnp.max(tags, axis=0)
    pairs = present[:, None] * present[None, :] * (1 - jnp.eye(len(present)))
    return masked_mean(vectors @ vectors.T, pairs)


def ciml(view, twin, tags, matrix, valid, alpha, reading=CIMLReading()):
    """L_CIML: equivariance of the CAMs plus alpha times the likeness of class prototypes (Eq. 4).

    Args:
      view, twin: RMLOutputs of the original and the transformed view (`cam_logits` and `features` are used).
      tags: 0/1 [B, C].
      matrix: float [B, N, N], see `equivariance_distance`.
      valid: bool [B, h, w].
      alpha: weight of the prototype term.
      reading: CIMLReading.

    Returns:
      float32 scalar, and a dict with its parts.
    """
    cams, twin_cams = (class_activation_maps(v.cam_logits) for v in (view, twin))
    target = cams if reading.gradient == "both" else jax.lax.stop_gradient(cams)
    compared = tags if reading.classes == "present" else jnp.ones_like(tags)
    distance = equivariance_distance(target, twin_cams, compared, matrix, valid)
    likeness = _similarity_in_batch if reading.prototypes == "batch" else _similarity_in_images
    similarity = sum(likeness(maps, v.features, tags) for maps, v in ((cams, view), (twin_cams, twin)))
    return distance + alpha * similarity, {"equivariance": distance, "prototype_similarity": similarity}


def _similarity_in_batch(cams, features, tags):
    return prototype_similarity(prototypes(cams, features, tags), tags)


def _similarity_in_images(cams, features, tags):
    """The mean over the images with two classes or more."""
    singly = (array[:, None] for array in (cams, features, tags))
    similarities = jax.vmap(_similarity_in_batch)(*singly)
    return masked_mean(similarities, tags.sum(axis=-1) > 1)


# --- L_MFML: Eqs. 5 to 8 ---


def standardize(context, valid):
    """The context R_c with mean 0 and deviation 1 over space, per image and channel.

    Without it a constant map would be a free minimum of the alignment (METHOD.md, L_MFML). No running state.

    Args:
      context: float [B, H, W, K].
      valid: bool [B, H, W], the pixels that count.

    Returns:
      float32 [B, H, W, K].
    """
    weight = valid[..., None].astype(jnp.float32)
    count = jnp.maximum(weight.sum(axis=(1, 2), keepdims=True), 1.0)
    centred = context - (context * weight).sum(axis=(1, 2), keepdims=True) / count
    variance = (jnp.square(centred) * weight).sum(axis=(1, 2), keepdims=True) / count
    return centred * jax.lax.rsqrt(variance + 1e-5)


def whiten(context, valid):
    """The context with its channels standardised over space and then made uncorrelated over the batch's pixels.

    Standardised channels can still become copies, up to their sign, of the one map that is easiest to align, and
    training goes there (docs/method.md, Collapse). Uncorrelated ones can't. By the Cholesky factor of their
    correlation, mixed with a little of the identity.

    Args:
      context: float [B, H, W, K].
      valid: bool [B, H, W], the pixels that count.

    Returns:
      float32 [B, H, W, K], 0 where not valid.
    """
    flat, correlation = _correlation(standardize(context, valid), valid)
    ridged = (1 - _RIDGE) * correlation + _RIDGE * jnp.eye(len(correlation))
    factor = jnp.linalg.cholesky(ridged)
    return jax.scipy.linalg.solve_triangular(factor, flat.T, lower=True).T.reshape(context.shape)


def effective_rank(context, valid):
    """How many independent channels a context amounts to, 1 (all are copies) to K.

    The participation ratio of the correlation's eigenvalues, (sum of them)^2 / sum of their squares.

    Args:
      context: float [B, H, W, K], standardised.
      valid: bool [B, H, W].

    Returns:
      float32 scalar; 0 where nothing counts.
    """
    _, correlation = _correlation(context, valid)
    return jnp.square(jnp.trace(correlation)) / jnp.maximum(jnp.sum(jnp.square(correlation)), _TINY)


def _correlation(standardized, valid):
    """The vectors of all pixels [B H W, K], those that don't count 0, and their correlation [K, K]."""
    flat = (standardized * valid[..., None]).reshape(-1, standardized.shape[-1])
    correlation = jnp.matmul(flat.T, flat, precision="highest") / jnp.maximum(jnp.sum(valid), 1)
    return flat, correlation


def mfml(view, twin, theta, valid, beta1, decorrelate=False):
    """L_MFML: mean |A(R_c) - R'_c| plus beta1 times I(R_c; R'_c), over valid pixels (Eqs. 6 to 8).

    The K channels' softmax is the discrete variable of the mutual information.

    Args:
      view, twin: RMLOutputs (`context` is used).
      theta: float [B, 2, 3], the transform A.
      valid: bool [B, H, W] on the context's grid, the pixels of the transformed view that show the original.
      beta1: weight of the mutual information.
      decorrelate: whether the context is whitened rather than standardised, see `whiten`.

    Returns:
      float32 scalar, and a dict with its parts and the context's deviation and effective rank, which show whether
      it collapses.
    """
    # Both over the same pixels, so that a context which moves exactly with the picture is at distance 0.
    normalize = whiten if decorrelate else standardize
    moved, twin_context = (normalize(c, valid) for c in (warp(view.context, theta), twin.context))
    distance = masked_mean(jnp.abs(moved - twin_context), valid[..., None])
    information = mutual_information(jax.nn.softmax(moved), jax.nn.softmax(twin_context), valid)
    parts = {
        "alignment": distance,
        "information_context": information,
        "context_deviation": jnp.mean(jnp.std(twin.context, axis=(1, 2))),
        "context_rank": effective_rank(standardize(twin.context, valid), valid),
    }
    return distance + beta1 * information, parts


# --- L_APML: Eqs. 9 to 14 ---


def affinity_loss(affinity, labels):
    """L_aff: (1 - R_a) averaged over the positive pairs and R_a over the negative ones, half each (Eq. 13).

    Args:
      affinity: float [B, N, N] in [0, 1].
      labels: [B, N, N], 1 positive, 0 negative, 255 ignored (`affinity_labels`).

    Returns:
      float32 scalar; a side without pairs counts 0.
    """
    return 0.5 * (masked_mean(1 - affinity, labels == 1) + masked_mean(affinity, labels == 0))


def apml(view, twin, labels, twin_labels, matrix, valid, beta2, contrast_weight=1.0):
    """L_APML: affinity learned from pseudo labels, and its mutual information (Eqs. 9 to 14).

    L_mi = -(I(y; R_a) + I(y'; R'_a) - 2 I(R_a; R'_a)): METHOD.md section 3 derives it from Eqs. 9 to 11, since
    Eq. 12 as printed is zero. R_a and R'_a are compared after A has acted on both axes of R_a, over pairs that
    are labelled in the transformed view.

    Args:
      view, twin: RMLOutputs (`affinity_logits` is used).
      labels, twin_labels: [B, N, N] affinity labels of each view, 255 = ignored.
      matrix: float [B, N, N], A on the cells.
      valid: bool [B, h, w], N = h * w.
      beta2: weight of the mutual information.
      contrast_weight: weight of L_aff; 1 in the paper.

    Returns:
      float32 scalar, and a dict with its parts.
    """
    affinity, twin_affinity = (jax.nn.sigmoid(v.affinity_logits) for v in (view, twin))
    contrast = affinity_loss(affinity, labels) + affinity_loss(twin_affinity, twin_labels)
    moved = jnp.einsum("bij,bjk,blk->bil", matrix, affinity, matrix)
    flat = valid.reshape(valid.shape[0], -1)
    comparable = (twin_labels != IGNORE) & flat[:, :, None] & flat[:, None, :]
    with_label = _label_information(affinity, labels) + _label_information(twin_affinity, twin_labels)
    shared = mutual_information(_binary(moved), _binary(twin_affinity), comparable)
    information = -(with_label - 2 * shared)
    parts = {
        "affinity": contrast,
        "information_affinity_label": with_label,
        "information_affinity_pair": shared,
    }
    return contrast_weight * contrast + beta2 * information, parts


def _label_information(affinity, labels):
    return mutual_information(_binary(affinity), _binary((labels == 1).astype(jnp.float32)), labels != IGNORE)


# --- L_self: beyond the paper ---


def self_training(cam_logits, labels, tags):
    """L_self: the CAMs learn their own refined pseudo labels, cell by cell.

    In the paper, pseudo labels teach the affinity alone; what PAR has corrected in them never reaches the CAMs that
    the mask is made of. Binary cross-entropy of every cell's class scores, mean over the image's tagged classes, then
    over the cells labelled with a class and over those labelled background, half each (docs/method.md, "Beyond the
    paper").

    Args:
      cam_logits: float [B, h, w, C], before ReLU.
      labels: int [B, h, w], pseudo labels: 0 background, 1..C classes, 255 ignore.
      tags: 0/1 [B, C].

    Returns:
      float32 scalar; a side without cells counts 0.
    """
    entropy = _binary_cross_entropy(cam_logits, jax.nn.one_hot(labels - 1, cam_logits.shape[-1]))
    tagged = tags[:, None, None, :]
    cells = jnp.sum(entropy * tagged, axis=-1) / jnp.maximum(jnp.sum(tagged, axis=-1), 1)
    foreground = (labels != BACKGROUND) & (labels != IGNORE)
    return 0.5 * (masked_mean(cells, foreground) + masked_mean(cells, labels == BACKGROUND))
