"""The exported function, from images to class scores, CAMs and masks."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from rml_jax.models import build
from rml_jax.ops.cam import cam_sum, cam_to_labels, min_max_normalize, symbolic_step
from rml_jax.ops.grid import ceil_div
from rml_jax.ops.normalize import normalize
from rml_jax.stages.canvas import smallest_side
from rml_jax.stages.config import stages_config
from rml_jax.stages.network import make_scores
from rml_jax.stages.runner import TAG_THRESHOLD


def make_program(config, params):
    """Builds stage `cam` as one pure function that includes the weights, for images of any size.

    Args:
      config: ConfigDict of the run.
      params: nnx.State of `RML`.

    Returns:
      Function of images, uint8 [B, H, W, 3], RGB, whose axes may be symbolic. It gives a dict of
        logits: float32 [B, C], class logits of the whole image,
        cams: float32 [B, H, W, C] in [0, 1], multi-scale CAMs,
        mask: uint8 [B, H, W], 0 background, 1..C classes, restricted to those whose sigmoid exceeds TAG_THRESHOLD.
    """
    graphdef, _ = build.build_graph(config)
    settings = stages_config(with_own_precision(config))
    scores = make_scores(graphdef, settings)
    step = symbolic_step(settings.scales, settings.stride)

    def program(images):
        batch, height, width, _ = images.shape
        # In this form, jax.export can divide a symbolic side by the step without remainder.
        below, right = (step * ceil_div(side, step) - side for side in (height, width))
        canvas = jnp.pad(images, ((0, 0), (0, below), (0, right), (0, 0)))
        size = jnp.stack([jnp.asarray(height, jnp.int32), jnp.asarray(width, jnp.int32)])
        logits, cams = scores(params, canvas, jnp.broadcast_to(size, (batch, 2)))
        return _outputs(logits, cams[:, :height, :width], config)

    return program


def with_own_precision(config):
    """Returns a copy of a configuration whose CAM passes have the model's precision, as exported programs have."""
    config = config.copy_and_resolve_references()
    config.cam.dtype = "model"  # The choice of "auto" is for the machine that exports.
    return config


def make_fixed_program(config, params):
    """Builds `make_program` for static sides; only the axis B may be symbolic.

    Without padding, the graph is smaller and has only operators that converters to other formats support.
    """
    graphdef, _ = build.build_graph(config)

    def program(images):
        model, normalized = nnx.merge(graphdef, params), normalize(images)
        logits_at, total = cam_sum(
            model.classify,
            normalized,
            scales=config.cam.scales,
            flip=config.cam.flip,
            stride=build.stride(config),
        )
        logits = logits_at[1.0] if 1.0 in logits_at else model.classify(normalized)[0]
        return _outputs(logits, min_max_normalize(total), config)

    return program


def _outputs(logits, cams, config):
    tags = logits > np.log(TAG_THRESHOLD / (1 - TAG_THRESHOLD))
    mask = cam_to_labels(cams, tags, config.eval.background.cam)
    return {"logits": logits, "cams": cams, "mask": mask.astype(jnp.uint8)}


def describe(config, step, height, width):
    """Describes a program's inputs, outputs and settings, as a JSON-like dict.

    Args:
      config: ConfigDict of the run.
      step: training step of the weights.
      height, width: of the images, ints or names.
    """
    classes = len(config.data.class_names)
    return {
        "classes": list(config.data.class_names),
        "step": step,
        "input": {"type": "uint8", "shape": ["batch", height, width, 3], "meaning": "RGB in 0..255"},
        "smallest_side": smallest_side(build.backbone(config), config.cam.scales),
        "outputs": {
            "logits": {"type": "float32", "shape": ["batch", classes], "meaning": "class logits"},
            "cams": {
                "type": "float32",
                "shape": ["batch", height, width, classes],
                "meaning": "class activation maps in 0..1",
            },
            "mask": {
                "type": "uint8",
                "shape": ["batch", height, width],
                "meaning": "0 background, c for classes[c - 1]",
            },
        },
        "settings": {
            "stage": "cam",
            "scales": list(config.cam.scales),
            "flip": config.cam.flip,
            "background": config.eval.background.cam,
            "region_contrast": 0.0,
            "tag_threshold": TAG_THRESHOLD,
        },
    }
