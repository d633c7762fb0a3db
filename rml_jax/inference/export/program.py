"""The function that is exported as a program: an image in; scores, CAMs and a mask out."""

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
    """Builds stage `cam` as one pure function with the weights inside, for images of any size.

    Args:
      config: ConfigDict of the run.
      params: nnx.State of `RML`.

    Returns:
      Function of images, uint8 [B, H, W, 3], RGB, whose axes may be symbolic. It gives a dict of
        logits: float32 [B, C], class logits of the whole image,
        cams: float32 [B, H, W, C] in [0, 1], multi-scale CAMs,
        mask: uint8 [B, H, W], 0 background, 1..C classes, of those whose sigmoid exceeds TAG_THRESHOLD.
    """
    graphdef, _ = build.build_graph(config)
    settings = stages_config(config)
    scores = make_scores(graphdef, settings)
    step = symbolic_step(settings.scales, settings.stride)

    def program(images):
        batch, height, width, _ = images.shape
        # In this form, a symbolic side can be divided by the step without remainder.
        below, right = (step * ceil_div(side, step) - side for side in (height, width))
        canvas = jnp.pad(images, ((0, 0), (0, below), (0, right), (0, 0)))
        size = jnp.stack([jnp.asarray(height, jnp.int32), jnp.asarray(width, jnp.int32)])
        logits, cams = scores(params, canvas, jnp.broadcast_to(size, (batch, 2)))
        return _outputs(logits, cams[:, :height, :width], config)

    return program


def make_fixed_program(config, params):
    """Builds `make_program` for sides that are known; of its axes only B may be symbolic.

    Without padding inside it is a smaller graph, of operators that converters to other formats know.
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
    """Returns what a user of a program must know, as a dict for JSON.

    Args:
      config: ConfigDict of the run.
      step: that the weights were trained to.
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
            "tag_threshold": TAG_THRESHOLD,
        },
    }
