"""Building the network from a run's configuration."""

import jax.numpy as jnp
from flax import nnx

from rml_jax.models.backbone import BACKBONES, BackboneConfig
from rml_jax.models.rml import RML, RMLConfig
from rml_jax.utils.errors import UserError
from rml_jax.utils.processor import multiplies_bfloat16

DTYPES = ("float32", "mixed", "bfloat16")
"""The values of `model.dtype`."""

CAM_DTYPES = ("auto", "mixed", "model")
"""The values of `cam.dtype`."""


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
        center_radius=config.model.center_radius,
        context_channels=config.model.context_channels,
        fused_stages=config.model.fused_stages,
        symmetric_affinity=config.model.symmetric_affinity,
    )
    return build_network(model_config, config.model.dtype, seed)


def build_network(model_config: RMLConfig, precision: str, seed: int) -> RML:
    """Builds the network of an architecture with fresh parameters.

    Args:
      model_config: RMLConfig.
      precision: one of DTYPES.
      seed: of the initial parameters.

    Returns:
      RML.
    """
    mixed = precision == "mixed"
    model = RML(model_config, dtype=jnp.dtype("float32" if mixed else precision), rngs=nnx.Rngs(params=seed))
    if mixed:
        use_mixed_precision(model)
    return model


def use_mixed_precision(model: RML) -> None:
    """Makes the backbone multiply matrices of operands rounded to bfloat16 (`rml_jax.ops.product`).

    Changes every module that has an attribute `mixed_precision`; other backbones stay as they are.

    Args:
      model: with float32 activations.
    """
    model.set_attributes(mixed_precision=True, raise_if_not_found=False)


def use_chunked_attention(model: RML) -> None:
    """Makes a CPU compute attention in chunks that stay in its cache (`rml_jax.ops.attention`), without gradients.

    Changes every module that has an attribute `chunked`; other backbones stay as they are.
    """
    model.set_attributes(chunked=True, raise_if_not_found=False)


def has_mixed_cams(config) -> bool:
    """Returns whether `cam.dtype` makes CAM passes use mixed precision where the model does not.

    Args:
      config: ConfigDict of a run.
    """
    if config.cam.dtype == "auto":
        return config.model.dtype == "float32" and multiplies_bfloat16()
    return config.cam.dtype == "mixed"


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
