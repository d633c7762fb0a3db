"""From pictures to masks on the device: the stages of inference (METHOD.md section 6)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from rml_jax.ops.affinity import random_walk
from rml_jax.ops.cam import cam_to_labels, multi_scale_cam
from rml_jax.ops.normalize import normalize
from rml_jax.ops.pseudo_label import PseudoLabelConfig, pseudo_labels, refine_with_background
from rml_jax.ops.resize import resize_bilinear

PROTOCOLS = ("predicted", "given")
"""Whose tags decide which classes an image may contain: the model's own, or the ground truth's."""

TAG_THRESHOLD = 0.5
"""The `predicted` protocol's threshold on the sigmoid of a class logit."""


@dataclasses.dataclass(frozen=True)
class StagesConfig:
    """Settings of the stages.

    Attributes:
      stages: which to compute, out of "cam", "affinity" and "par".
      background: the background's score in each stage.
      scales, flip: the passes of the multi-scale CAM.
      stride: pixels per cell of the network's last grid.
      radius: greatest step of the random walk, in cells.
      pseudo_label: how pseudo labels are made; `par` uses the same refinement.
    """

    stages: tuple[str, ...]
    background: dict[str, float]
    scales: tuple[float, ...]
    flip: bool
    stride: int
    radius: int
    pseudo_label: PseudoLabelConfig


def make_predict(graphdef, config):
    """Builds the pure prediction function.

    Args:
      graphdef: nnx.GraphDef of `RML`.
      config: StagesConfig.

    Returns:
      Function of parameters, images uint8 [B, H, W, 3] and ground-truth tags [B, C], to be jitted. It gives a
      dict of
        probabilities: float32 [B, C], sigmoid of the class logits,
        cam: float32 [B, H, W] in [0, 1], the strongest given class's map,
        pseudo_label: int32 [B, H, W], what training would learn from,
        masks: dict protocol -> stage -> uint8 [B, H, W], 0 background, 1..C classes.
    """

    def predict(params, images, tags):
        model = nnx.merge(graphdef, params)
        pictures = normalize(images)
        outputs = model(pictures)
        cams = multi_scale_cam(
            model.classify, pictures, scales=config.scales, flip=config.flip, stride=config.stride
        )
        affinity = jax.nn.sigmoid(outputs.affinity_logits)
        probabilities = jax.nn.sigmoid(outputs.logits)
        colours = images.astype(jnp.float32)
        whole = jnp.tile(jnp.array([0, 0, *images.shape[1:3]]), (len(images), 1))
        allowed = {"predicted": probabilities > TAG_THRESHOLD, "given": tags > 0}
        return {
            "probabilities": probabilities,
            "cam": jnp.max(cams * tags[:, None, None, :], axis=-1),
            "pseudo_label": pseudo_labels(cams, colours, tags, whole, config.pseudo_label),
            "masks": {
                protocol: {
                    stage: _stage(stage, cams, affinity, colours, classes, config).astype(jnp.uint8)
                    for stage in config.stages
                }
                for protocol, classes in allowed.items()
            },
        }

    return predict


def _stage(stage, cams, affinity, colours, classes, config):
    background = config.background[stage]
    if stage == "cam":
        return cam_to_labels(cams, classes, background)
    if stage == "affinity":
        return affinity_mask(cams, affinity, classes, background, config.stride, config.radius)
    refined = refine_with_background(
        cams,
        classes,
        colours,
        (background,),
        dilations=config.pseudo_label.dilations,
        iterations=config.pseudo_label.iterations,
    )
    return refined[..., 0, :].argmax(axis=-1)


def affinity_mask(cams, affinity, classes, background, stride, radius):
    """Stage `affinity`: CAMs propagated by one step of the random walk.

    Args:
      cams: float [B, H, W, C] in [0, 1].
      affinity: float [B, N, N] in [0, 1], N cells of stage 4's grid.
      classes: bool [B, C], those allowed in each image.
      background: the background's score before the softmax.
      stride: pixels per cell.
      radius: greatest step, in cells.

    Returns:
      int32 [B, H, W], 0 background, 1..C classes.
    """
    size = cams.shape[1:3]
    # The network's own grid: every strided convolution rounds up.
    grid = tuple(-(-side // stride) for side in size)
    scores = resize_bilinear(cams, grid)
    scores = jnp.where(classes[:, None, None, :], scores, -jnp.inf)
    scores = jnp.concatenate([jnp.full_like(scores[..., :1], background), scores], axis=-1)
    walked = random_walk(jax.nn.softmax(scores, axis=-1), affinity, radius)
    return resize_bilinear(walked, size).argmax(axis=-1)
