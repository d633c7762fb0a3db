"""RML's network: a backbone with three heads, without a decoder (docs/method.md, Network)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
from flax import nnx

from rml_jax.models.backbone import BackboneConfig
from rml_jax.ops.extremes import spatial_max
from rml_jax.ops.grid import ceil_div
from rml_jax.ops.local_mean import local_mean
from rml_jax.ops.region import inside
from rml_jax.ops.resize import resize_bilinear

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Key


_ROUNDING = 1e-4
"""Greatest error of features by rounding, as a share of their root mean square over the channels."""


def _max_pool(x, where=None):
    return spatial_max(x if where is None else jnp.where(where, x, -jnp.inf))


def _average_pool(x, where=None):
    # jax2onnx has no jnp.mean with `where`, not even None.
    return jnp.mean(x, axis=(1, 2)) if where is None else jnp.mean(x, axis=(1, 2), where=where)


def _or_all(cells):
    """Takes all cells of an image that has none; None stays None, all cells of all images."""
    return None if cells is None else cells | ~cells.any(axis=(1, 2), keepdims=True)


def _deviations(features, means):
    """Computes features minus their means [B, h, w, D], 0 where rounding could be all of it.

    Min-max scaling would make a whole CAM of the rounding errors of an even image.
    """
    deviations = features - means
    magnitude = jnp.sqrt(jnp.mean(jnp.square(features), axis=-1, keepdims=True))
    return jnp.where(jnp.abs(deviations) > _ROUNDING * magnitude, deviations, 0)


POOLINGS = {"max": _max_pool, "average": _average_pool}
"""Name in `model.pooling` -> function of maps [B, H, W, C] and the mask `where` [B, H, W, 1], or None, to [B, C]."""


@dataclasses.dataclass(frozen=True)
class RMLConfig:
    """Architecture of backbone and heads.

    Attributes:
      backbone: description of the backbone, such as `BACKBONES["b1"]()`.
      num_classes: C, foreground classes; the background has no score.
      pooling: "max" (the released code's default) or "average", over the last stage's grid.
      center_radius: if not 0, the classifier sees each cell's features minus their mean over the cells around it, up
        to this far along rows and columns (docs/method.md, Centred features).
      context_channels: K, channels of the fused multi-scale context (Eq. 5).
      fused_stages: number of stages, counted from the last, that are fused; 1 is the paper's "without fusion module".
      symmetric_affinity: whether the affinity head takes x + x^T, as in AFA, or x alone, as in the released code.

    Raises:
      ValueError: if the pooling is unknown, or the average of centred features.
    """

    backbone: BackboneConfig
    num_classes: int
    pooling: str = "max"
    center_radius: int = 0
    context_channels: int = 15
    fused_stages: int = 4
    symmetric_affinity: bool = True

    def __post_init__(self):
        if self.pooling not in POOLINGS:
            raise ValueError(f"unknown pooling {self.pooling!r}: expected one of {', '.join(POOLINGS)}")
        if self.center_radius and self.pooling == "average":
            raise ValueError("average pooling of centred features is about 0: expected pooling max")


class RMLOutputs(NamedTuple):
    """Outputs for one view, all float32. h x w is the last stage's grid, N = h w, H1 x W1 the first stage's grid.

    Attributes:
      logits: [B, C], class logits of the image.
      features: [B, h, w, D], of the last stage.
      cam_logits: [B, h, w, C], the classifier applied to every cell, before ReLU.
      affinity_logits: [B, N, N], symmetric unless the configuration says otherwise; R_a is their sigmoid.
      context: [B, H1, W1, K], the fused context R_c before standardisation; None if not requested.
    """

    logits: Float[Array, "b c"]
    features: Float[Array, "b h w d"]
    cam_logits: Float[Array, "b h w c"]
    affinity_logits: Float[Array, "b n n"]
    context: Float[Array, "b h1 w1 k"] | None


class RML(nnx.Module):
    """Backbone, classifier, affinity head and context fusion.

    Args:
      config: RMLConfig.
      dtype: type of the backbone's activations; parameters and everything after the backbone are float32.
      rngs: nnx.Rngs of the initial parameters.
    """

    def __init__(self, config: RMLConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        backbone = config.backbone
        features = backbone.embed_dims[-1]
        self.backbone = backbone.build(dtype=dtype, rngs=rngs)
        small = nnx.initializers.truncated_normal(0.02)
        self.classifier = nnx.Linear(
            features, config.num_classes, use_bias=False, kernel_init=small, rngs=rngs
        )
        self.affinity = nnx.Linear(backbone.num_attention_maps, 1, rngs=rngs)
        self.fusion = nnx.Linear(
            sum(backbone.embed_dims[-config.fused_stages :]), config.context_channels, rngs=rngs
        )
        self.fused_stages = config.fused_stages
        self.symmetric_affinity = config.symmetric_affinity
        self.pooling = config.pooling
        self.center_radius = config.center_radius
        self.stride = backbone.stride

    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        key: Key[Array, ""] | None = None,
        sizes: Int[Array, "b 2"] | None = None,
        with_context: bool = True,
        cells: Bool[Array, "b _h _w"] | None = None,
    ) -> RMLOutputs:
        """Computes the outputs for one view.

        Args:
          images: float [B, H, W, 3], normalised by ImageNet's mean and standard deviation.
          key: random key of stochastic depth; None at inference.
          sizes: int32 [B, 2], height and width of each image, which lies in the top left corner of the canvas; None
            if the images fill it. Maps are undefined outside an image, and `context` also near its edges.
          with_context: whether to compute `context`, used only in training.
          cells: see `classify`; None takes those of `sizes`.

        Returns:
          RMLOutputs.
        """
        stages, attention = self.backbone(images, key, sizes)
        stages = [stage.astype(jnp.float32) for stage in stages]
        features = stages[-1]
        if cells is None and sizes is not None:
            cells = inside(ceil_div(sizes, self.stride), features.shape[1:3])
        logits, cam_logits = self._class_scores(features, cells)
        return RMLOutputs(
            logits=logits,
            features=features,
            cam_logits=cam_logits,
            affinity_logits=self._affinity_logits(attention),
            context=self._fuse(stages) if with_context else None,
        )

    def classify(
        self, images: Float[Array, "b h w 3"], cells: Bool[Array, "b _h _w"] | None = None
    ) -> tuple[Float[Array, "b c"], Float[Array, "b _h _w c"]]:
        """Computes the class logits [B, C] and CAM logits [B, h, w, C], without the other heads.

        Args:
          images: see `__call__`.
          cells: bool [B, h, w], the cells of the last stage's grid that show the image. The others take no part in
            pooling and in the means that centred features lack, and their CAM logits are 0. None takes all, as does
            an image that has none.

        Returns:
          float32 [B, C] and [B, h, w, C].
        """
        stages, _ = self.backbone(images)
        return self._class_scores(stages[-1].astype(jnp.float32), cells)

    def part_logits(
        self,
        features: Float[Array, "b h w d"],
        cells: Bool[Array, "b h w"] | None,
        part: Bool[Array, "b h w"],
    ) -> Float[Array, "b c"]:
        """Computes the class logits of a part of each image.

        Args:
          features: `RMLOutputs.features`.
          cells: what they were computed with.
          part: bool [B, h, w], the cells that are pooled, of those in `cells`; all cells of an image if that leaves
            none. Features are centred by the whole image.

        Returns:
          float32 [B, C].
        """
        cells = _or_all(cells)
        part = part if cells is None else part & cells
        return self._pooled_logits(self._centred(features, cells), _or_all(part))

    def _class_scores(self, features, cells):
        """Computes the class logits [B, C] and CAM logits [B, h, w, C] from the last stage's features."""
        cells = _or_all(cells)
        features = self._centred(features, cells)
        cam_logits = self.classifier(features)
        if cells is not None:
            cam_logits = jnp.where(cells[..., None], cam_logits, 0)
        return self._pooled_logits(features, cells), cam_logits

    def _centred(self, features, cells):
        if not self.center_radius:
            return features
        return _deviations(features, local_mean(features, self.center_radius, cells))

    def _pooled_logits(self, features, cells):
        where = None if cells is None else cells[..., None]
        return self.classifier(POOLINGS[self.pooling](features, where=where))

    def _affinity_logits(self, attention):
        """Mixes the attention maps [B, maps, N, N] into one map [B, N, N].

        The head is linear, so the map is symmetrised (x + x^T, as in AFA) once after mixing.
        """
        weight = self.affinity.kernel[...][:, 0]
        mixed = jnp.einsum("bhij,h->bij", attention, weight)
        if self.symmetric_affinity:
            mixed = mixed + mixed.swapaxes(-1, -2)
        return mixed + self.affinity.bias[...]

    def _fuse(self, stages):
        """Computes Eq. 5: the stages resized to the first stage's grid, concatenated and mapped to K channels.

        The 1x1 convolution commutes with the resize, so each stage is projected to K channels on its own grid before
        it is enlarged, which is a fraction of the work.
        """
        grid = stages[0].shape[1:3]
        context, first = self.fusion.bias[...], 0
        for stage in stages[-self.fused_stages :]:
            channels = stage.shape[-1]
            projected = stage @ self.fusion.kernel[...][first : first + channels]
            context = context + resize_bilinear(projected, grid)
            first += channels
        return context
