"""The function that is exported as a program: a picture in, scores, CAMs and a mask out, nothing to prepare."""

import jax.numpy as jnp
import numpy as np

from rml_jax import build
from rml_jax.evaluation.canvas import smallest_side
from rml_jax.evaluation.runner import stages_config
from rml_jax.evaluation.stages import TAG_THRESHOLD, make_scores, symbolic_step
from rml_jax.models.mit import cells
from rml_jax.ops.cam import cam_to_labels


def make_program(config, params):
    """Stage `cam` as one pure function with the weights inside.

    Args:
      config: ConfigDict of the run.
      params: nnx.State of `RML`.

    Returns:
      Function of images, uint8 [B, H, W, 3], RGB, whose sides may be symbolic. It gives a dict of
        logits: float32 [B, C], class logits of the whole picture,
        cams: float32 [B, H, W, C] in [0, 1], multi-scale CAMs,
        mask: uint8 [B, H, W], 0 background, 1..C classes, of those whose sigmoid exceeds TAG_THRESHOLD.
    """
    graphdef, _ = build.build_graph(config)
    settings = stages_config(config)
    scores = make_scores(graphdef, settings)
    step = symbolic_step(settings)

    def program(images):
        batch, height, width, _ = images.shape
        # In this form, a symbolic side can be divided by the step without remainder.
        below, right = (step * cells(side, step) - side for side in (height, width))
        canvas = jnp.pad(images, ((0, 0), (0, below), (0, right), (0, 0)))
        size = jnp.stack([jnp.asarray(height, jnp.int32), jnp.asarray(width, jnp.int32)])
        logits, cams = scores(params, canvas, jnp.broadcast_to(size, (batch, 2)))
        cams = cams[:, :height, :width]
        tags = logits > np.log(TAG_THRESHOLD / (1 - TAG_THRESHOLD))
        mask = cam_to_labels(cams, tags, config.eval.background.cam)
        return {"logits": logits, "cams": cams, "mask": mask.astype(jnp.uint8)}

    return program


def describe(config, step, height, width):
    """What a user of a program must know, as a dict for JSON.

    Args:
      config: ConfigDict of the run.
      step: that the weights were trained to.
      height, width: of the pictures, ints or names.
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
            "tag_threshold": TAG_THRESHOLD,
        },
    }
