"""From a run's configuration to the parts it describes."""

import jax.numpy as jnp
from flax import nnx

from rml_jax.losses import READINGS, CIMLReading, LossWeights
from rml_jax.models import RML, MiTConfig, RMLConfig
from rml_jax.ops import AffineRange, PseudoLabelConfig
from rml_jax.training.optimizer import OptimizerConfig
from rml_jax.training.step import StepConfig


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


def pseudo_label_config(config):
    """PseudoLabelConfig of a run."""
    return PseudoLabelConfig(**config.pseudo_label)


def step_config(config):
    """StepConfig of a run."""
    weights = ("ciml", "mfml", "apml", "alpha", "affinity", "beta1", "beta2", "self_training")
    return StepConfig(
        weights=LossWeights(**{name: config.loss[name] for name in weights}),
        affine=AffineRange(**config.affine),
        pseudo_label=pseudo_label_config(config),
        cam_scales=config.cam.scales,
        cam_flip=config.cam.flip,
        radius=config.loss.radius,
        stride=stride(config),
        ciml=CIMLReading(**{name: config.loss[f"ciml_{name}"] for name in READINGS}),
        decorrelate=config.loss.decorrelate,
        accumulate=config.train.accumulate,
        freeze_norms=_freezes_norms(config),
    )


def optimizer_config(config):
    """OptimizerConfig of a run."""
    return OptimizerConfig(
        backbone_rate=config.optimizer.backbone_rate,
        head_rate=config.optimizer.head_rate,
        weight_decay=config.optimizer.weight_decay,
        warmup_steps=config.optimizer.warmup_steps,
        total_steps=config.train.steps,
        freeze_norms=_freezes_norms(config),
    )


def _freezes_norms(config):
    choice = config.optimizer.freeze_norms
    return choice == "always" or (choice == "pretrained" and bool(config.model.init_from))
