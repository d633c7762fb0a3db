"""AdamW in parameter groups and its learning-rate schedules (docs/method.md, Training constants)."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from rml_jax.models.backbone import is_norm
from rml_jax.utils.errors import UserError

# The released recipe's start of the warm-up, as a fraction of the base rate.
_WARMUP_START = 1e-6


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Configuration of the optimizer.

    Attributes:
      backbone_lr, head_lr: base learning rates of the two parameter groups.
      weight_decay: decoupled.
      warmup_steps, total_steps: in updates.
      freeze_norms: whether the backbone's LayerNorm parameters are frozen.
      schedule: name in `SCHEDULES`.
    """

    backbone_lr: float
    head_lr: float
    weight_decay: float
    warmup_steps: int
    total_steps: int
    freeze_norms: bool
    schedule: str = "warmup_poly"


def optimizer_config(config):
    """Returns the OptimizerConfig of a run.

    Args:
      config: ConfigDict of the run.

    Raises:
      UserError: for an unknown `optimizer.schedule`.
    """
    settings = config.optimizer
    if settings.schedule not in SCHEDULES:
        raise UserError(
            f"config.optimizer.schedule is {settings.schedule!r}: expected one of {', '.join(SCHEDULES)}"
        )
    return OptimizerConfig(
        backbone_lr=settings.backbone_lr,
        head_lr=settings.head_lr,
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup_steps,
        total_steps=config.train.steps,
        freeze_norms=freezes_norms(config),
        schedule=settings.schedule,
    )


def freezes_norms(config):
    """Returns whether a run freezes the backbone's LayerNorm parameters.

    Args:
      config: ConfigDict of the run.
    """
    choice = config.optimizer.freeze_norms
    return choice == "always" or (choice == "pretrained" and bool(config.model.init_from))


def warmup_poly(base, config):
    """Returns a schedule: linear warm-up from 1e-6 of the base rate, then base * (1 - step / total_steps).

    Args:
      base: the base learning rate.
      config: OptimizerConfig.

    Returns:
      optax.Schedule: function of the number of updates made so far.
    """
    warmup_steps, total_steps = config.warmup_steps, config.total_steps

    # Not optax.join_schedules of linear schedules: optax interpolates as (start - end) * (1 - progress) + end, which
    # rounds differently in float32, and runs would not be bit-identical to those of earlier versions.
    def rate(step):
        progress = jnp.minimum(step / max(warmup_steps, 1), 1.0)
        warm = base * (_WARMUP_START + (1 - _WARMUP_START) * progress)
        decayed = base * jnp.maximum(1 - step / total_steps, 0.0)
        return jnp.where(step < warmup_steps, warm, decayed)

    return rate


SCHEDULES = {"warmup_poly": warmup_poly}
"""Name in `config.optimizer.schedule` -> function (base learning rate, OptimizerConfig) -> optax.Schedule."""


def learning_rates(config):
    """Returns the learning-rate schedules of the optimizer, which are also logged.

    Args:
      config: OptimizerConfig.

    Returns:
      Group, "backbone" or "heads" -> its optax.Schedule.
    """
    schedule = SCHEDULES[config.schedule]
    return {"backbone": schedule(config.backbone_lr, config), "heads": schedule(config.head_lr, config)}


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
    """Builds AdamW (betas 0.9, 0.999) with one learning rate for the backbone and one for the heads.

    Args:
      config: OptimizerConfig.
      params: nnx.State of `RML`.

    Returns:
      optax.GradientTransformation.
    """
    transforms = {
        group: optax.adamw(rate, b1=0.9, b2=0.999, weight_decay=config.weight_decay)
        for group, rate in learning_rates(config).items()
    }
    transforms["frozen"] = optax.set_to_zero()
    return optax.multi_transform(transforms, parameter_groups(params, config.freeze_norms))
