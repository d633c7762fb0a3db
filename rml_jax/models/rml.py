"""RML's network: the Mix Transformer with its three heads (METHOD.md section 1). There is no decoder."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rml_jax.models.mit import MiTConfig, MixTransformer, cells
from rml_jax.ops.region import inside
from rml_jax.ops.resize import resize_bilinear


def _max_pool(x, axis, where=None):
    return jnp.max(x if where is None else jnp.where(where, x, -jnp.inf), axis=axis)


POOLINGS = {"max": _max_pool, "average": jnp.mean}


@dataclasses.dataclass(frozen=True)
class RMLConfig:
    """Backbone and heads.

    Attributes:
      backbone: shape of the Mix Transformer.
      num_classes: foreground classes C; the background has no score of its own.
      pooling: "max" (the released code's default) or "average", over stage 4's grid.
      context_channels: K, channels of the fused multi-scale context (Eq. 5).
      fused_stages: how many stages, counted from the last, are fused; 1 is the paper's "without fusion module".
      symmetric_affinity: whether the affinity head sees x + x^T, as in AFA, or x alone, as in the released code.
    """

    backbone: MiTConfig
    num_classes: int
    pooling: str = "max"
    context_channels: int = 15
    fused_stages: int = 4
    symmetric_affinity: bool = True

    def __post_init__(self):
        if self.pooling not in POOLINGS:
            raise ValueError(f"unknown pooling {self.pooling!r}: expected one of {', '.join(POOLINGS)}")


class RMLOutputs(NamedTuple):
    """What one view yields; h x w is stage 4's grid, N = h w, H1 x W1 stage 1's. All float32.

    Attributes:
      logits: [B, C], class logits of the whole picture.
      features: [B, h, w, D], stage 4.
      cam_logits: [B, h, w, C], the classifier applied to every cell, before ReLU.
      affinity_logits: [B, N, N], symmetric unless the configuration says otherwise; R_a is their sigmoid.
      context: [B, H1, W1, K], the fused context R_c before its normalisation; None where not wanted.
    """

    logits: jax.Array
    features: jax.Array
    cam_logits: jax.Array
    affinity_logits: jax.Array
    context: jax.Array | None


class RML(nnx.Module):
    """Backbone, classifier, affinity head and context fusion.

    Args:
      config: see `RMLConfig`.
      dtype: type of the backbone's activations; parameters and everything behind the backbone stay float32.
      rngs: for the initial parameters.
    """

    def __init__(self, config, *, dtype=jnp.float32, rngs):
        backbone = config.backbone
        features = backbone.channels[-1]
        self.backbone = MixTransformer(backbone, dtype=dtype, rngs=rngs)
        small = nnx.initializers.truncated_normal(0.02)
        self.classifier = nnx.Linear(
            features, config.num_classes, use_bias=False, kernel_init=small, rngs=rngs
        )
        self.affinity = nnx.Linear(2 * backbone.heads[-1], 1, rngs=rngs)
        self.fusion = nnx.Linear(
            sum(backbone.channels[-config.fused_stages :]), config.context_channels, rngs=rngs
        )
        self.fused_stages = config.fused_stages
        self.symmetric_affinity = config.symmetric_affinity
        self.pooling = config.pooling
        self.stride = backbone.stride

    def __call__(self, images, key=None, sizes=None, with_context=True):
        """Everything the losses need from one view.

        Args:
          images: float [B, H, W, 3], normalised.
          key: random key for stochastic depth, None at inference.
          sizes: int32 [B, 2], true height and width of pictures in the top left corner of the canvas; None if
            they fill it. Beyond them the maps have no meaning, and `context` has none near their edges either.
          with_context: whether `context` is wanted, which only training needs.

        Returns:
          RMLOutputs.
        """
        stages, attention = self.backbone(images, key, sizes)
        stages = [stage.astype(jnp.float32) for stage in stages]
        features = stages[-1]
        real = None if sizes is None else inside(cells(sizes, self.stride), features.shape[1:3])[..., None]
        pooled = POOLINGS[self.pooling](features, axis=(1, 2), where=real)
        return RMLOutputs(
            logits=self.classifier(pooled),
            features=features,
            cam_logits=self.classifier(features),
            affinity_logits=self._affinity_logits(attention),
            context=self._fuse(stages) if with_context else None,
        )

    def classify(self, images):
        """Class logits [B, C] and CAM logits [B, h, w, C], without the training-only heads."""
        stages, _ = self.backbone(images)
        features = stages[-1].astype(jnp.float32)
        pooled = POOLINGS[self.pooling](features, axis=(1, 2))
        return self.classifier(pooled), self.classifier(features)

    def _affinity_logits(self, attention):
        """Mix the attention maps [B, 2 heads, N, N] into one map [B, N, N].

        The head is linear, so mixing first and symmetrising (x + x^T, as AFA does) once after is the same.
        """
        weight = self.affinity.kernel[...][:, 0]
        mixed = jnp.einsum("bhij,h->bij", attention, weight)
        if self.symmetric_affinity:
            mixed = mixed + mixed.swapaxes(-1, -2)
        return mixed + self.affinity.bias[...]

    def _fuse(self, stages):
        """Eq. 5: the stages on stage 1's grid, concatenated, 1x1 convolution to K channels.

        A 1x1 convolution commutes with the resize, so each stage is projected to K channels on its own grid and
        only those are enlarged: the same result for a fraction of the work.
        """
        grid = stages[0].shape[1:3]
        context, first = self.fusion.bias[...], 0
        for stage in stages[-self.fused_stages :]:
            channels = stage.shape[-1]
            projected = stage @ self.fusion.kernel[...][first : first + channels]
            context = context + resize_bilinear(projected, grid)
            first += channels
        return context
