"""The function that is exported as a program: a picture in, scores, CAMs and a mask out, nothing to prepare."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from rml_jax.models import build
from rml_jax.ops.cam import cam_to_labels, multi_scale_cam
from rml_jax.ops.grid import ceil_div
from rml_jax.ops.normalize import normalize
from rml_jax.stages.canvas import smallest_side
from rml_jax.stages.runner import stages_config
from rml_jax.stages.stages import TAG_THRESHOLD, make_scores, symbolic_step


def make_program(config, params):
    """Stage `cam` as one pure function with the weights inside, for pictures of any size.

    Args:
      config: ConfigDict of the run.
      params: nnx.State of `RML`.

    Returns:
      Function of images, uint8 [B, H, W, 3], RGB, whose axes may be symbolic. It gives a dict of
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
        below, right = (step * ceil_div(side, step) - side for side in (height, width))
        canvas = jnp.pad(images, ((0, 0), (0, below), (0, right), (0, 0)))
        size = jnp.stack([jnp.asarray(height, jnp.int32), jnp.asarray(width, jnp.int32)])
        logits, cams = scores(params, canvas, jnp.broadcast_to(size, (batch, 2)))
        return _outputs(logits, cams[:, :height, :width], config)

    return program


def make_fixed_program(config, params):
    """`make_program` for sides that are known; of its axes only B may be symbolic.

    Without padding inside it is a smaller graph, of operators that converters to other formats know.
    """
    graphdef, _ = build.build_graph(config)
    flip = config.cam.flip

    def program(images):
        model = nnx.merge(graphdef, params)
        normalized = normalize(images)
        logits_at = {}

        def classify(scaled):
            logits, maps = model.classify(scaled)
            # Each picture is followed by its mirror, if there are mirrors.
            logits_at[scaled.shape[1:3]] = logits.reshape(-1, 2, logits.shape[-1])[:, 0] if flip else logits
            return logits, maps

        cams = multi_scale_cam(
            classify, normalized, scales=config.cam.scales, flip=flip, stride=build.stride(config)
        )
        size = images.shape[1:3]
        logits = logits_at[size] if size in logits_at else model.classify(normalized)[0]
        return _outputs(logits, cams, config)

    return program


def _outputs(logits, cams, config):
    tags = logits > np.log(TAG_THRESHOLD / (1 - TAG_THRESHOLD))
    mask = cam_to_labels(cams, tags, config.eval.background.cam)
    return {"logits": logits, "cams": cams, "mask": mask.astype(jnp.uint8)}


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
