"""The network: backbones and the RML heads; depends on jax, flax and numpy only."""

from rml_jax.models.backbone import BACKBONES, Backbone, BackboneConfig
from rml_jax.models.mit import MiTConfig, MixTransformer
from rml_jax.models.rml import RML, RMLConfig, RMLOutputs

__all__ = [
    "BACKBONES",
    "RML",
    "Backbone",
    "BackboneConfig",
    "MiTConfig",
    "MixTransformer",
    "RMLConfig",
    "RMLOutputs",
]
