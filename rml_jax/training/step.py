"""The train step: two views of every picture through one network, four losses, one update (METHOD.md 2-5)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from rml_jax import losses
from rml_jax.labels import IGNORE
from rml_jax.models import build
from rml_jax.ops.affine import AffineRange, sample_affine, validity, warp, warp_labels, warp_matrix
from rml_jax.ops.affinity import affinity_labels
from rml_jax.ops.cam import multi_scale_cam
from rml_jax.ops.normalize import normalize
from rml_jax.ops.pseudo_label import PseudoLabelConfig, gather_classes, slot_pseudo_labels, tagged_slots
from rml_jax.ops.region import box_mask
from rml_jax.ops.resize import resize_nearest
from rml_jax.training.optimizer import freezes_norms, parameter_groups


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """What shapes a train step.

    Attributes:
      weights: of the losses.
      affine: what the transform between the views is drawn from.
      pseudo_label: how pseudo labels are made.
      cam_scales, cam_flip: the passes of the multi-scale CAM.
      radius: greatest distance of an affinity pair, in cells of stage 4's grid.
      stride: pixels per cell of stage 4's grid.
      ciml: how L_CIML is read.
      decorrelate: whether L_MFML whitens the context rather than standardising it (`losses.whiten`).
      accumulate: parts that a batch is computed in, one after the other, for devices that can't hold it at once.
      freeze_norms: whether the backbone's LayerNorm parameters are frozen, so that they need no gradient.
    """

    weights: losses.LossWeights
    affine: AffineRange
    pseudo_label: PseudoLabelConfig
    cam_scales: tuple[float, ...]
    cam_flip: bool
    radius: int
    stride: int
    ciml: losses.CIMLReading = dataclasses.field(default_factory=losses.CIMLReading)
    decorrelate: bool = False
    accumulate: int = 1
    freeze_norms: bool = False


def step_config(config):
    """StepConfig of a run."""
    weights = ("ciml", "mfml", "apml", "alpha", "affinity", "beta1", "beta2", "self_training")
    return StepConfig(
        weights=losses.LossWeights(**{name: config.loss[name] for name in weights}),
        affine=AffineRange(**config.affine),
        pseudo_label=PseudoLabelConfig(**config.pseudo_label),
        cam_scales=config.cam.scales,
        cam_flip=config.cam.flip,
        radius=config.loss.radius,
        stride=build.stride(config),
        ciml=losses.CIMLReading(**{name: config.loss[f"ciml_{name}"] for name in losses.READINGS}),
        decorrelate=config.loss.decorrelate,
        accumulate=config.train.grad_accum_steps,
        freeze_norms=freezes_norms(config),
    )


class TrainState(NamedTuple):
    """All that changes in training.

    Attributes:
      step: int32 scalar, the number of batches trained on. "Step n" is the state after n of them, everywhere:
        in logs, checkpoint names and metrics. Each made one update, or none where it was skipped.
      params: nnx.State of parameters, float32.
      optimizer: optimizer state.
      key: random key, the same all along; each step folds its number into it.
    """

    step: jax.Array
    params: nnx.State
    optimizer: optax.OptState
    key: jax.Array


def make_train_step(graphdef, optimizer, config):
    """Builds the pure train step.

    Args:
      graphdef: nnx.GraphDef of `RML`.
      optimizer: optax.GradientTransformation over its parameters.
      config: StepConfig.

    Returns:
      Function (TrainState, batch, mutual) -> (TrainState, metrics), to be jitted with `mutual` static. `batch`
      is a dict of `image` (uint8 [B, S, S, 3]), `box` (int32 [B, 4]) and `tags` (float32 [B, C]); `metrics` a
      dict of float32 scalars. `mutual` is METHOD.md section 3's ramp: False trains L_cls alone and does not
      compute the other terms. It is a Python bool, one program each, rather than a traced one: XLA's CPU
      backend runs the body of a conditional 7 times slower.

      A step whose loss or gradient is not finite leaves parameters and optimizer as they were and has the metric
      `skipped` 1 rather than 0. With `config.accumulate` = n, part k holds the pictures k, k + n, ... of the
      batch; the gradient is the mean of the parts' gradients, and so is every metric. For L_cls that is what the
      whole batch would give, but prototypes and histograms (METHOD.md section 3) are those of each part.

      `gradient_norm` is over the parameters that are trained; `gradient_norm/GROUP` over those of one of the
      optimizer's groups.
    """

    def gradients_of(params, batch, key, mutual):
        affine_key, drop_key = jax.random.split(key)

        if mutual:
            theta = sample_affine(affine_key, batch["image"].shape[0], config.affine)
            # Labels first, then the pair: left to itself, XLA's CPU backend runs both networks side by side, where
            # they compete for the caches (3.9 against 3.1 s for MiT-B1, batch 2, 320x320, 2 cores).
            labels = make_pseudo_labels(graphdef, params, batch, config)
            labels, batch = jax.lax.optimization_barrier((labels, batch))

        def loss(params):
            params = _stop_frozen(params, config.freeze_norms)
            if mutual:
                return _all_losses(graphdef, params, batch, labels, theta, drop_key, config)
            return _classification_loss(graphdef, params, batch, drop_key)

        (total, terms), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return {"loss": total, **terms}, gradients

    def train_step(state, batch, mutual):
        key = jax.random.fold_in(state.key, state.step)
        metrics, gradients = _mean_over_parts(
            lambda part, key: gradients_of(state.params, part, key, mutual), batch, key, config.accumulate
        )
        norms = _gradient_norms(gradients, config.freeze_norms)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norms["gradient_norm"])
        params, optimizer_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (optax.apply_updates(state.params, updates), optimizer_state),
            (state.params, state.optimizer),
        )
        metrics |= norms | {"skipped": 1.0 - finite}
        return TrainState(state.step + 1, params, optimizer_state, state.key), metrics

    return train_step


def _stop_frozen(params, freeze_norms):
    """Lets no gradient into frozen parameters, as nothing asks for it."""
    groups = parameter_groups(params, freeze_norms)
    return jax.tree.map(
        lambda leaf, group: jax.lax.stop_gradient(leaf) if group == "frozen" else leaf, params, groups
    )


def _gradient_norms(gradients, freeze_norms):
    """Norm of the whole gradient and of each group's that is trained, by the names of metrics."""
    groups = jax.tree.leaves(parameter_groups(gradients, freeze_norms))
    leaves = list(zip(jax.tree.leaves(gradients), groups, strict=True))
    parts = {
        f"gradient_norm/{group}": optax.tree.norm([leaf for leaf, of in leaves if of == group])
        for group in ("backbone", "heads")
    }
    return {"gradient_norm": optax.tree.norm(list(parts.values())), **parts}


def _mean_over_parts(compute, batch, key, count):
    """The mean of `compute(part, key)` over the parts of a batch, which are computed one after the other.

    A part takes every count-th picture: so each device finds its share of every part in its share of the batch.
    """
    if count == 1:
        return compute(batch, key)
    parts = {name: array.reshape(-1, count, *array.shape[1:]).swapaxes(0, 1) for name, array in batch.items()}
    first = {name: array[0] for name, array in parts.items()}
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(compute, first, key))

    def add(sums, numbered_part):
        number, part = numbered_part
        return jax.tree.map(jnp.add, sums, compute(part, jax.random.fold_in(key, number))), None

    sums, _ = jax.lax.scan(add, zeros, (jnp.arange(count), parts))
    return jax.tree.map(lambda x: x / count, sums)


def _classification_loss(graphdef, params, batch, key):
    images = normalize(batch["image"], batch["box"])
    outputs = nnx.merge(graphdef, params)(images, key)
    loss = losses.multilabel_soft_margin(outputs.logits, batch["tags"])
    return loss, {"classification": loss}


def _all_losses(graphdef, params, batch, labels, theta, drop_key, config):
    """L of Eq. 16 and its parts."""
    images = normalize(batch["image"], batch["box"])
    model = nnx.merge(graphdef, params)
    # Each pair is a batch of two to the network. With the vmap over pictures rather than over the views, convolutions
    # merge the two axes pictures first, and a batch that is split over devices stays split.
    pairs = jnp.stack([images, warp(images, theta)], axis=1)
    outputs = jax.vmap(model, out_axes=1)(pairs, jax.random.split(drop_key, len(images)))
    return pair_losses(outputs, labels, batch, theta, config)


def pair_losses(outputs, labels, batch, theta, config):
    """L of Eq. 16 after the warm-up, from what the network yields for both views.

    Args:
      outputs: RMLOutputs with a leading axis of 2, the original and the transformed view.
      labels: int32 [B, S, S], pseudo labels of the original.
      batch: see `make_train_step`.
      theta: float32 [B, 2, 3], the transform A.
      config: StepConfig.

    Returns:
      float32 scalar, and a dict of its terms and their parts.
    """
    view, twin = (jax.tree.map(lambda x, i=i: x[i], outputs) for i in (0, 1))
    tags, box = batch["tags"], batch["box"]
    canvas, grid, fine = labels.shape[1:3], view.cam_logits.shape[1:3], view.context.shape[1:3]
    matrix = warp_matrix(theta, grid)
    valid_fine = validity(theta, box_mask(box, fine, canvas))
    valid = validity(theta, box_mask(box, grid, canvas))
    cells = resize_nearest(labels, grid)
    twin_cells = resize_nearest(warp_labels(labels, theta), grid)
    pair_labels, twin_pair_labels = (affinity_labels(each, config.radius) for each in (cells, twin_cells))

    weights = config.weights
    classification = losses.multilabel_soft_margin(view.logits, tags)
    ciml, ciml_parts = losses.ciml(view, twin, tags, matrix, valid, weights.alpha, config.ciml)
    mfml, mfml_parts = losses.mfml(view, twin, theta, valid_fine, weights.beta1, config.decorrelate)
    apml, apml_parts = losses.apml(
        view, twin, pair_labels, twin_pair_labels, matrix, valid, weights.beta2, weights.affinity
    )
    self_training = losses.self_training(view.cam_logits, cells, tags)
    self_training += losses.self_training(twin.cam_logits, twin_cells, tags)
    # A term without weight is measured all the same, but costs no gradient.
    weighted = (
        (weights.ciml, ciml),
        (weights.mfml, mfml),
        (weights.apml, apml),
        (weights.self_training, self_training),
    )
    total = classification + sum(weight * term for weight, term in weighted if weight)
    terms = {
        "classification": classification,
        "ciml": ciml,
        "mfml": mfml,
        "apml": apml,
        "self_training": self_training,
    }
    real_pixels = box_mask(box, canvas, canvas)
    labelled = {
        "labelled_foreground": losses.masked_mean((labels > 0) & (labels != IGNORE), real_pixels),
        "labelled_background": losses.masked_mean(labels == 0, real_pixels),
    }
    return total, terms | ciml_parts | mfml_parts | apml_parts | labelled


def make_pseudo_labels(graphdef, params, batch, config):
    """Pseudo labels of the original view from multi-scale CAMs (METHOD.md section 4); they carry no gradient.

    Args:
      graphdef, params: the split `RML`.
      batch: see `make_train_step`.
      config: StepConfig.

    Returns:
      int32 [B, S, S]: 0 background, 1..C classes, 255 ignore.
    """
    model = nnx.merge(graphdef, params)
    tags, images = batch["tags"], normalize(batch["image"], batch["box"])
    classes, used = tagged_slots(tags, min(config.pseudo_label.slots, tags.shape[-1]))

    def classify(scaled):
        # Only the maps of tagged classes are enlarged to the pictures' size; each picture's mirror follows it.
        logits, maps = model.classify(scaled)
        return logits, gather_classes(maps, jnp.repeat(classes, len(scaled) // len(classes), axis=0))

    maps = multi_scale_cam(
        classify, images, scales=config.cam_scales, flip=config.cam_flip, stride=config.stride
    )
    colours = batch["image"].astype(jnp.float32)
    return slot_pseudo_labels(maps, classes, used, colours, batch["box"], config.pseudo_label)
