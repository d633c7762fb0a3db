"""Pure array functions, each usable on its own; they depend on jax and numpy only."""

from rml_jax.ops.affine import AffineRange, sample_affine, warp, warp_labels, warp_matrix
from rml_jax.ops.affinity import affinity_labels, random_walk
from rml_jax.ops.cam import cam_to_labels, class_activation_maps, multi_scale_cam
from rml_jax.ops.crf import SETTINGS, CRFSettings, dense_crf, dense_crf_batch, dense_crf_padded
from rml_jax.ops.normalize import normalize
from rml_jax.ops.par import par
from rml_jax.ops.pseudo_label import PseudoLabelConfig, pseudo_labels
from rml_jax.ops.resize import resize_bilinear, resize_nearest

__all__ = [
    "SETTINGS",
    "AffineRange",
    "CRFSettings",
    "PseudoLabelConfig",
    "affinity_labels",
    "cam_to_labels",
    "class_activation_maps",
    "dense_crf",
    "dense_crf_batch",
    "dense_crf_padded",
    "multi_scale_cam",
    "normalize",
    "par",
    "pseudo_labels",
    "random_walk",
    "resize_bilinear",
    "resize_nearest",
    "sample_affine",
    "warp",
    "warp_labels",
    "warp_matrix",
]
