"""The work that the contestants share: the paper's settings for VOC, and a batch."""

import numpy as np

from rml_jax.config import default_config
from rml_jax.models import BACKBONES, RMLConfig
from rml_jax.ops import AffineRange, PseudoLabelConfig
from rml_jax.ops.resize import bilinear_matrix
from rml_jax.training.optimizer import OptimizerConfig
from rml_jax.training.step import StepConfig

CLASSES, TAGS_PER_PICTURE = 20, 2


def network_config(variant):
    """RMLConfig of a backbone for VOC's classes."""
    return RMLConfig(BACKBONES[variant](), num_classes=CLASSES)


def step_config():
    """Returns the StepConfig of the paper's run on VOC."""
    return StepConfig(
        loss=default_config().loss.to_dict(),
        affine=AffineRange(),
        pseudo_label=PseudoLabelConfig(),
        cam_scales=(0.5, 1.0, 1.5),
        cam_flip=True,
        stride=16,
        freeze_norms=True,
    )


def optimizer_config():
    """Returns the OptimizerConfig of the paper's run on VOC, from a pre-trained start."""
    return OptimizerConfig(
        backbone_lr=6e-5,
        head_lr=6e-4,
        weight_decay=0.01,
        warmup_steps=1500,
        total_steps=18000,
        freeze_norms=True,
    )


def make_batch(count, crop):
    """Pictures of smooth colours with a little noise and two tags each, as a dict of NumPy arrays (see the step)."""
    rng = np.random.default_rng(0)
    enlarge = bilinear_matrix(crop, 8)
    smooth = np.einsum("ih,bhwc,jw->bijc", enlarge, rng.normal(size=(count, 8, 8, 3)), enlarge)
    tags = np.zeros((count, CLASSES), np.float32)
    for one in tags:
        one[rng.choice(CLASSES, TAGS_PER_PICTURE, replace=False)] = 1
    return {
        "image": np.clip(128 + 90 * smooth + 6 * rng.normal(size=smooth.shape), 0, 255).astype(np.uint8),
        "box": np.tile(np.array([0, 0, crop, crop], np.int32), (count, 1)),
        "tags": tags,
    }
