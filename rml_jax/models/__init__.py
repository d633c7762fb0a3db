"""The network: Mix Transformer backbone and the RML heads. Needs nothing but jax and flax."""

from rml_jax.models.mit import MiTConfig, MixTransformer
from rml_jax.models.rml import RML, RMLConfig, RMLOutputs

__all__ = ["RML", "MiTConfig", "MixTransformer", "RMLConfig", "RMLOutputs"]
