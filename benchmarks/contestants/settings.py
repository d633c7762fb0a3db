"""Settings that the contestants share: the paper's for VOC, and a batch."""

import numpy as np

from rml_jax.config import default_config
from rml_jax.models import BACKBONES, RMLConfig
from rml_jax.ops import AffineRange, PseudoLabelConfig
from rml_jax.ops.resize import bilinear_matrix
from rml_jax.training.optimizer import OptimizerConfig
from rml_jax.training.step import StepConfig

CLASSES, TAGS_PER_IMAGE = 20, 2


def network_config(variant):
    """Returns the RMLConfig of a backbone for VOC's classes."""
    return RMLConfig(BACKBONES[variant](), num_classes=CLASSES)


def step_config():
    """Returns the StepConfig of the paper's settings for VOC."""
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
    """Returns the OptimizerConfig of the paper's settings for VOC with pre-trained weights."""
    return OptimizerConfig(
        backbone_lr=6e-5,
        head_lr=6e-4,
        weight_decay=0.01,
        warmup_steps=1500,
        total_steps=18000,
        freeze_norms=True,
    )


def make_images(count, size, noise):
    """Returns images of smooth colours with a little noise, uint8 [B, H, W, 3], and two tags each, float32 [B, C]."""
    rng = np.random.default_rng(0)
    rows, columns = (bilinear_matrix(side, 8) for side in size)
    smooth = np.einsum("ih,bhwc,jw->bijc", rows, rng.normal(size=(count, 8, 8, 3)), columns)
    tags = np.zeros((count, CLASSES), np.float32)
    for one in tags:
        one[rng.choice(CLASSES, TAGS_PER_IMAGE, replace=False)] = 1
    noisy = 128 + 90 * smooth + noise * rng.normal(size=smooth.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8), tags


def make_batch(count, crop):
    """Returns a batch of square images as a dict of NumPy arrays (see `rml_jax.training.step`)."""
    images, tags = make_images(count, (crop, crop), noise=6)
    return {"image": images, "box": np.tile(np.int32([0, 0, crop, crop]), (count, 1)), "tags": tags}
