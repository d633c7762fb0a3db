"""The interface of backbones and their registry.

To add a backbone, add a function that returns its `BackboneConfig` to `BACKBONES`; `model.variant` then accepts its
name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Key


class Backbone(Protocol):
    """An nnx.Module that maps images to features and attention logits.

    Parameters of normalisation layers are recognised by the names of their modules (`is_norm`).
    """

    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        key: Key[Array, ""] | None = None,
        sizes: Int[Array, "b 2"] | None = None,
    ) -> tuple[list[Float[Array, "b _h _w _d"]], Float[Array, "b maps n n"]]:
        """Returns the features of the stages and the attention logits of the last blocks.

        Args:
          images: float [B, H, W, 3], normalised by ImageNet's mean and standard deviation.
          key: random key of stochastic depth; None at inference.
          sizes: int32 [B, 2], height and width of each image, which lies in the top left corner of the canvas; None
            if the images fill it. Pixels outside an image must not affect its part of the results.

        Returns:
          features: one array [B, H_i, W_i, D_i] per stage, with D_i from `BackboneConfig.embed_dims`. The last one
            has H_i = ceil(H / stride) and W_i = ceil(W / stride).
          attention: float32 [B, num_attention_maps, N, N], pre-softmax attention logits over the N cells of the last
            stage's grid, of all heads of the last blocks.
        """


class BackboneConfig(Protocol):
    """Describes a backbone without building it.

    Attributes:
      family: name of the architecture for reports, such as "MiT".
      stride: pixels per cell of the last stage's grid.
      smallest_side: smallest height and width in pixels that the backbone accepts.
      embed_dims: channels of the features of each stage, first stage first.
      num_attention_maps: number of attention maps, the heads of all last blocks.
    """

    family: str
    stride: int
    smallest_side: int
    embed_dims: tuple[int, ...]
    num_attention_maps: int

    def build(self, *, dtype: jnp.dtype, rngs) -> Backbone:
        """Returns the backbone with fresh float32 parameters, whose activations have the type `dtype`."""


BACKBONES: dict[str, Callable[..., BackboneConfig]] = {}
"""Name in `model.variant` -> function of `drop_path_rate`, which has a default, that returns a BackboneConfig."""


def is_norm(name: str) -> bool:
    """Returns whether a parameter belongs to a normalisation layer, a module with "norm" in its name.

    Args:
      name: path of the parameter, such as "backbone/stages/0/embedding_norm/scale".
    """
    return any("norm" in module.lower() for module in name.split("/")[:-1])
