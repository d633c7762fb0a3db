"""Building the network from a run's configuration."""

import jax.numpy as jnp
from flax import nnx

from rml_jax.models.backbone import BACKBONES, BackboneConfig
from rml_jax.models.rml import RML, RMLConfig
from rml_jax.utils.errors import UserError


def build_model(config, seed: int) -> RML:
    """Builds the network with fresh parameters.

    Args:
      config: ConfigDict of a run.
      seed: of the initial parameters.

    Returns:
      RML.

    Raises:
      UserError: if the backbone is not registered.
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


def build_graph(config) -> tuple[nnx.GraphDef, nnx.State]:
    """Builds the network's structure without allocating parameters.

    Args:
      config: ConfigDict of a run.

    Returns:
      graphdef and the parameters as an nnx.State of jax.ShapeDtypeStruct.
    """
    return nnx.split(nnx.eval_shape(lambda: build_model(config, seed=0)))


def backbone(config) -> BackboneConfig:
    """Returns the description of a run's backbone.

    Raises:
      UserError: if it is not registered.
    """
    name = config.model.variant
    if name not in BACKBONES:
        raise UserError(f"config.model.variant is {name!r}: expected one of {', '.join(BACKBONES)}")
    # Other families need not know the setting.
    padding = {} if config.model.padding == "zeros" else {"padding": config.model.padding}
    return BACKBONES[name](drop_path_rate=config.model.drop_path_rate, **padding)


def backbone_name(config) -> str:
    """Returns the name of a run's backbone for reports, such as "MiT b1"."""
    return f"{backbone(config).family} {config.model.variant}"


def stride(config) -> int:
    """Returns the pixels per cell of the network's last grid."""
    return backbone(config).stride
