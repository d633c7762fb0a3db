"""What RML needs of a backbone, and the registry of backbones.

To add one, put a function into `BACKBONES` that returns its `BackboneConfig`; `model.variant` then takes its name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Key


class Backbone(Protocol):
    """An nnx.Module that maps images to features and attention logits.

    Parameters of normalisation layers are recognised by the names of their modules, see `is_norm`.
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
            if the images fill it. What lies beyond an image must not change its part of the results.

        Returns:
          features: one array [B, H_i, W_i, D_i] a stage, with D_i of `BackboneConfig.embed_dims`. The last one has
            H_i = ceil(H / stride) and W_i = ceil(W / stride).
          attention: float32 [B, num_attention_maps, N, N], pre-softmax attention logits over the N cells of the last
            stage's grid, of all heads of the last blocks.
        """


class BackboneConfig(Protocol):
    """Describes a backbone without building it.

    Attributes:
      family: name of the architecture for reports, such as "MiT".
      stride: pixels per cell of the last stage's grid.
      smallest_side: least height and width in pixels that the backbone takes.
      embed_dims: channels of the features of each stage, first stage first.
      num_attention_maps: number of attention maps, the heads of the last blocks together.
    """

    family: str
    stride: int
    smallest_side: int
    embed_dims: tuple[int, ...]
    num_attention_maps: int

    def build(self, *, dtype: jnp.dtype, rngs) -> Backbone:
        """Returns the backbone with fresh float32 parameters, whose activations have the type `dtype`."""


BACKBONES: dict[str, Callable[..., BackboneConfig]] = {}
"""Name in `model.variant` -> function of `drop_path_rate`, with a default, that returns a BackboneConfig."""


def is_norm(name: str) -> bool:
    """Returns whether a parameter belongs to a normalisation layer: whether a module above it has "norm" in its name.

    Args:
      name: path of the parameter, such as "backbone/stages/0/embedding_norm/scale".
    """
    return any("norm" in module.lower() for module in name.split("/")[:-1])
