"""From a run's configuration to its network."""

import jax.numpy as jnp
from flax import nnx

from rml_jax.models import RML, MiTConfig, RMLConfig


def build_model(config, seed):
    """The network with fresh parameters.

    Args:
      config: ConfigDict of a run.
      seed: int, of the initial parameters.

    Returns:
      RML. Inside `nnx.eval_shape` or `jax.eval_shape` nothing is computed.
    """
    model_config = RMLConfig(
        backbone=backbone(config),
        num_classes=len(config.data.class_names),
        pooling=config.model.pooling,
        context_channels=config.model.context_channels,
        fused_stages=config.model.fused_stages,
        symmetric_affinity=config.model.symmetric_affinity,
    )
    return RML(model_config, dtype=jnp.dtype(config.model.dtype), rngs=nnx.Rngs(params=seed))


def build_graph(config):
    """The network's structure without its numbers.

    Args:
      config: ConfigDict of a run.

    Returns:
      graphdef and the parameters as an nnx.State of jax.ShapeDtypeStruct.
    """
    return nnx.split(nnx.eval_shape(lambda: build_model(config, seed=0)))


def backbone(config):
    """MiTConfig of a run."""
    return MiTConfig.variant(config.model.variant, drop_path=config.model.drop_path)


def stride(config):
    """Pixels per cell of the network's last grid."""
    return backbone(config).stride
