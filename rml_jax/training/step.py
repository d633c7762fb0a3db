"""The train step: forward pass of both views, all losses, one update (Eq. 16)."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from rml_jax import losses
from rml_jax.labels import BACKGROUND, IGNORE
from rml_jax.models import build
from rml_jax.ops.affine import AffineRange, sample_affine, validity, warp
from rml_jax.ops.cam import multi_scale_cam
from rml_jax.ops.grid import ceil_div
from rml_jax.ops.join import enlarge, join, sample_parts
from rml_jax.ops.normalize import normalize
from rml_jax.ops.pseudo_label import PseudoLabelConfig, gather_classes, slot_pseudo_labels, tagged_slots
from rml_jax.ops.region import box_mask
from rml_jax.training.optimizer import freezes_norms, parameter_groups


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """Configuration of a train step.

    Attributes:
      loss: values of `config.loss` by name, such as the weights of the losses.
      affine: ranges of the transform between the views.
      pseudo_label: settings of pseudo labels.
      cam_scales, cam_flip: of the multi-scale CAM.
      cam_mixed: whether their precision is mixed whatever the model's (`rml_jax.models.build.has_mixed_cams`).
      stride: pixels per cell of the backbone's last grid.
      center_features: whether the network centres features, which must leave out what lies outside the image.
      grad_accum_steps: number of parts that a batch is split into, computed one after the other to save memory.
      join: share of the images that are joined while classification alone is trained.
      freeze_norms: whether the backbone's LayerNorm parameters are frozen, so that they need no gradient.
    """

    loss: Mapping[str, float]
    affine: AffineRange
    pseudo_label: PseudoLabelConfig
    cam_scales: tuple[float, ...]
    cam_flip: bool
    stride: int
    center_features: bool = False
    cam_mixed: bool = False
    grad_accum_steps: int = 1
    join: float = 0.0
    freeze_norms: bool = False


def step_config(config):
    """Returns the StepConfig of a run.

    Args:
      config: ConfigDict of the run.
    """
    return StepConfig(
        loss=config.loss.to_dict(),
        affine=AffineRange(**config.affine),
        pseudo_label=PseudoLabelConfig(**config.pseudo_label),
        cam_scales=config.cam.scales,
        cam_flip=config.cam.flip,
        stride=build.stride(config),
        center_features=config.model.center_radius > 0,
        cam_mixed=build.has_mixed_cams(config),
        grad_accum_steps=config.train.grad_accum_steps,
        join=config.train.join,
        freeze_norms=freezes_norms(config),
    )


class TrainState(NamedTuple):
    """The state that changes during training.

    Attributes:
      step: int32 scalar, the number of batches trained on. "Step n" is the state after n batches in logs, checkpoint
        names and metrics. Each batch makes one update, or none if it is skipped.
      params: nnx.State of parameters, float32.
      optimizer: optimizer state.
      key: random key, constant over the run; each step folds its number into it.
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
      Function (TrainState, batch, mutual) -> (TrainState, metrics), to be jitted with `mutual` static. `batch` is a
      dict of `image` (uint8 [B, S, S, 3]), `box` (int32 [B, 4], top, left, bottom, right of the real pixels) and
      `tags` (float32 [B, C]); `metrics` is a dict of float32 scalars.

      `mutual` is False for the first `config.loss.start_step` steps, which train L_cls alone and do not compute the
      other terms (docs/method.md, Training constants). It is a Python bool, with one program per value, because XLA's
      CPU backend takes tens of times as long for the gradient of a convolution's kernel in the body of a conditional.

      A step whose loss or gradient is not finite leaves parameters and optimizer unchanged and has the metric
      `skipped` 1 instead of 0. With `config.grad_accum_steps` = n, part k has the images k, k + n, ... of the batch;
      gradient and metrics are means over the parts. For L_cls this equals the whole batch, but prototypes and
      histograms are computed per part.

      `gradient_norm` covers all trained parameters, `gradient_norm/GROUP` those of one group of the optimizer.
    """

    def gradients_of(params, batch, key, mutual):
        affine_key, drop_key = jax.random.split(key)
        images = normalize(batch["image"], batch["box"])
        if mutual:
            theta = sample_affine(affine_key, len(images), config.affine)
            labels = make_pseudo_labels(graphdef, params, images, batch, config)
            # Labels first, then the pair: without the barrier, XLA's CPU backend runs both networks concurrently, and
            # they compete for the caches (3.9 against 3.1 s for MiT-B1, batch 2, 320x320, 2 cores).
            labels, images = jax.lax.optimization_barrier((labels, images))

        def loss(params):
            model = nnx.merge(graphdef, _stop_frozen(params, config.freeze_norms))
            if not mutual:
                return classification_loss(model, images, batch, affine_key, drop_key, config)
            outputs = both_views(model, images, batch, theta, drop_key, config)
            return pair_losses(outputs, labels, batch, theta, config)

        (total, terms), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return {"loss": total, **terms}, gradients

    def train_step(state, batch, mutual):
        key = jax.random.fold_in(state.key, state.step)
        metrics, gradients = mean_over_parts(
            lambda part, key: gradients_of(state.params, part, key, mutual),
            batch,
            key,
            config.grad_accum_steps,
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
    """Stops the gradient at frozen parameters, so that it is not computed."""
    groups = parameter_groups(params, freeze_norms)
    return jax.tree.map(
        lambda leaf, group: jax.lax.stop_gradient(leaf) if group == "frozen" else leaf, params, groups
    )


def _gradient_norms(gradients, freeze_norms):
    """Computes the gradient norms of all trained parameters and of each group, by metric name."""
    groups = jax.tree.leaves(parameter_groups(gradients, freeze_norms))
    leaves = list(zip(jax.tree.leaves(gradients), groups, strict=True))
    parts = {
        f"gradient_norm/{group}": optax.tree.norm([leaf for leaf, of in leaves if of == group])
        for group in ("backbone", "heads")
    }
    return {"gradient_norm": optax.tree.norm(list(parts.values())), **parts}


def mean_over_parts(compute, batch, key, count):
    """Computes the mean of `compute(part, key)` over the parts of a batch, one after the other.

    A part has every count-th image, so that each device holds its shard of each part.

    Args:
      compute: function of a part of the batch and a random key; returns a pytree of arrays.
      batch: dict of arrays [B, ...].
      key: random key; each part folds its number into it.
      count: number of parts, a divisor of B.

    Returns:
      Pytree of arrays.
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


def classification_loss(model, images, batch, join_key, drop_key, config):
    """Computes L_cls of the crops, a share of which are joined (docs/method.md, Joined images).

    Args:
      model: RML.
      images: float32 [B, S, S, 3], `batch["image"]` normalised.
      batch: see `make_train_step`; `tags` and `box` are used.
      join_key: random key of the cuts.
      drop_key: random key of stochastic depth.
      config: StepConfig.

    Returns:
      float32 scalar, and a dict of it as a metric.
    """
    tags, cells = batch["tags"], image_cells(images, batch, config)
    if not config.join:
        loss = losses.multilabel_soft_margin(model(images, drop_key, cells=cells).logits, tags)
        return loss, {"classification": loss}
    size = images.shape[1:3]
    grid = tuple(ceil_div(side, config.stride) for side in size)
    kept, joined = sample_parts(join_key, len(images), grid, config.join)
    images = join(images, enlarge(kept, config.stride, size))
    real = join(box_mask(batch["box"], grid, size), kept)
    cells = None if cells is None else real
    features = model(images, drop_key, cells=cells).features
    parts = jnp.stack([kept, ~kept])
    logits = jnp.stack([model.part_logits(features, cells, part) for part in parts])
    of_parts = jnp.stack([tags, jnp.roll(tags, 1, axis=0)])
    shown = (parts & real).any(axis=(2, 3))
    loss = losses.joined_soft_margin(logits, of_parts, shown, joined)
    return loss, {"classification": loss}


def both_views(model, images, batch, theta, key, config):
    """Computes the network's outputs for the crops and for the transformed crops.

    Args:
      model: RML.
      images: float32 [B, S, S, 3], `batch["image"]` normalised.
      batch: see `make_train_step`; `box` is used.
      theta: float32 [B, 2, 3], the transform A.
      key: random key of stochastic depth.
      config: StepConfig.

    Returns:
      RMLOutputs with a leading axis of 2, the original and the warped view.
    """
    # The network sees each pair as a batch of two. With vmap over the images rather than over the views, convolutions
    # merge the two axes with the images first, and a batch that is sharded over devices stays sharded.
    pairs = jnp.stack([images, warp(images, theta)], axis=1)
    cells = image_cells(images, batch, config)
    if cells is not None:
        cells = jnp.stack([cells, validity(theta, cells)], axis=1)

    def outputs(views, key, cells):
        return model(views, key, cells=cells)

    return jax.vmap(outputs, out_axes=1)(pairs, jax.random.split(key, len(images)), cells)


def image_cells(views, batch, config):
    """Computes which cells of the last grid show the image and not the padding of its crop, for centred features.

    Args:
      views: [V B, S', S', 3], the crops at any scale; with V = 2 each is followed by its mirror image.
      batch: see `make_train_step`; `box` is used.
      config: StepConfig.

    Returns:
      bool [V B, h, w]. None if features are not centred: then all cells count, as in the paper.
    """
    if not config.center_features:
        return None
    grid = tuple(ceil_div(side, config.stride) for side in views.shape[1:3])
    cells = box_mask(batch["box"], grid, batch["image"].shape[1:3])
    if len(views) == len(cells):
        return cells
    return jnp.stack([cells, cells[:, :, ::-1]], axis=1).reshape(-1, *grid)


def pair_losses(outputs, labels, batch, theta, config):
    """Computes the total loss (Eq. 16) from the network's outputs for both views.

    Args:
      outputs: RMLOutputs with a leading axis of 2, the original and the warped view.
      labels: int32 [B, S, S], pseudo labels of the original.
      batch: see `make_train_step`; `tags` and `box` are used.
      theta: float32 [B, 2, 3], the transform A.
      config: StepConfig.

    Returns:
      float32 scalar, and a dict of the terms, unweighted, and further metrics (`losses.total_loss`), with the
      fractions of real pixels labelled foreground and background.
    """
    tags, box = batch["tags"], batch["box"]
    pair = losses.make_pair(outputs, labels, tags, box, theta, config.loss["radius"])
    total, metrics = losses.total_loss(pair, config.loss)
    size = labels.shape[1:3]
    real = box_mask(box, size, size)
    foreground = (labels != BACKGROUND) & (labels != IGNORE)
    metrics["labelled_foreground"] = losses.masked_mean(foreground, real)
    metrics["labelled_background"] = losses.masked_mean(labels == BACKGROUND, real)
    return total, metrics


def make_pseudo_labels(graphdef, params, images, batch, config):
    """Computes pseudo labels of the original view from multi-scale CAMs (docs/method.md, Pseudo labels).

    No gradient passes.

    Args:
      graphdef, params: the split `RML`.
      images: float32 [B, S, S, 3], `batch["image"]` normalised.
      batch: see `make_train_step`.
      config: StepConfig.

    Returns:
      int32 [B, S, S]: 0 background, 1..C classes, 255 ignore.
    """
    model, tags = nnx.merge(graphdef, params), batch["tags"]
    build.use_chunked_attention(model)
    if config.cam_mixed:
        build.use_mixed_precision(model)
    classes, used = tagged_slots(tags, min(config.pseudo_label.slots, tags.shape[-1]))

    def classify(scaled):
        # Only the maps of tagged classes are enlarged to the images' size. Each image is followed by its mirror.
        logits, maps = model.classify(scaled, image_cells(scaled, batch, config))
        return logits, gather_classes(maps, jnp.repeat(classes, len(scaled) // len(classes), axis=0))

    maps = multi_scale_cam(
        classify, images, scales=config.cam_scales, flip=config.cam_flip, stride=config.stride
    )
    colours = batch["image"].astype(jnp.float32)
    return slot_pseudo_labels(maps, classes, used, colours, batch["box"], config.pseudo_label)
