"""AdamW in parameter groups and its learning-rate schedule (METHOD.md section 5)."""

import dataclasses

import jax
import optax

from rml_jax.models.backbone import is_norm

# The released recipe's start of the warm-up, as a share of the base rate.
_WARMUP_START = 1e-6


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Attributes: base learning rates of the two groups, decoupled weight decay, steps of linear warm-up, total
    steps, and whether the backbone's norm parameters stay as they are.
    """

    backbone_lr: float
    head_lr: float
    weight_decay: float
    warmup_steps: int
    total_steps: int
    freeze_norms: bool


def optimizer_config(config):
    """OptimizerConfig of a run."""
    return OptimizerConfig(
        backbone_lr=config.optimizer.backbone_lr,
        head_lr=config.optimizer.head_lr,
        weight_decay=config.optimizer.weight_decay,
        warmup_steps=config.optimizer.warmup_steps,
        total_steps=config.train.steps,
        freeze_norms=freezes_norms(config),
    )


def freezes_norms(config):
    """Whether the backbone's LayerNorm parameters of a run are frozen."""
    choice = config.optimizer.freeze_norms
    return choice == "always" or (choice == "pretrained" and bool(config.model.init_from))


def warmup_poly(base, warmup_steps, total_steps):
    """Learning rate: linear warm-up from 1e-6 of the base, then base * (1 - step / total).

    Args:
      base: the base learning rate.
      warmup_steps, total_steps: in updates.

    Returns:
      Function of the number of updates made so far, traced or not.
    """

    def rate(step):
        progress = jax.numpy.minimum(step / max(warmup_steps, 1), 1.0)
        warm = base * (_WARMUP_START + (1 - _WARMUP_START) * progress)
        decayed = base * jax.numpy.maximum(1 - step / total_steps, 0.0)
        return jax.numpy.where(step < warmup_steps, warm, decayed)

    return rate


def parameter_groups(params, freeze_norms):
    """Returns the group of every parameter: "backbone", "heads" or "frozen".

    Args:
      params: nnx.State of `RML`.
      freeze_norms: whether the parameters of the backbone's normalisation layers are frozen (`is_norm`).

    Returns:
      Pytree of strings with the structure of `params`.
    """

    def group(path, _):
        names = [str(getattr(part, "key", getattr(part, "name", ""))) for part in path]
        if names[0] != "backbone":
            return "heads"
        return "frozen" if freeze_norms and is_norm("/".join(names)) else "backbone"

    return jax.tree_util.tree_map_with_path(group, params)


def make_optimizer(config, params):
    """AdamW (betas 0.9, 0.999) with one learning rate for the backbone and one for the heads.

    Args:
      config: OptimizerConfig.
      params: nnx.State of `RML`.

    Returns:
      optax.GradientTransformation.
    """

    def adamw(base):
        rate = warmup_poly(base, config.warmup_steps, config.total_steps)
        return optax.adamw(rate, b1=0.9, b2=0.999, weight_decay=config.weight_decay)

    transforms = {
        "backbone": adamw(config.backbone_lr),
        "heads": adamw(config.head_lr),
        "frozen": optax.set_to_zero(),
    }
    return optax.multi_transform(transforms, parameter_groups(params, config.freeze_norms))
