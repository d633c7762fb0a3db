"""Trains and scores the same network on masks: what the tags alone are compared with.

    python -m experiments.supervised --config=FILE --json=FILE [--config.key=value ...]

The network, its start, the crops, the optimizer and the number of steps are those of the configuration. The
classifier has one more class, the background. It is applied to every cell of the last grid, enlarged to the crop, and
trained by softmax cross-entropy against the masks of the training images. Masks are predicted at the image's own
scale alone.
"""

import contextlib
import functools
import time
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks import measure
from experiments.pretrain import clipped_optimizer, make_step
from rml_jax.commands import cli
from rml_jax.data.augment import augment
from rml_jax.data.sources import make_source, with_class_names
from rml_jax.evaluation.scores import Scores
from rml_jax.labels import IGNORE
from rml_jax.models import build
from rml_jax.models.weights import load_weights
from rml_jax.ops import normalize, resize_bilinear
from rml_jax.ops.grid import ceil_div
from rml_jax.ops.region import resize_inside
from rml_jax.stages.canvas import crop_labels, pad_image, place, smallest_side
from rml_jax.training.step import TrainState
from rml_jax.utils.progress import Progress
from rml_jax.validate import check_config


@cli.command
def main(arguments=None):
    parser = cli.Parser("python -m experiments.supervised", description=__doc__)
    parser.add_config(without="digits_small")
    parser.add_argument("--json", type=Path, help="file for the scores, the losses and the time")
    chosen, config = parser.parse_config(arguments, default="digits_small")
    cli.start_jax(config)
    environment = measure.environment()
    config = with_class_names(config)
    check_config(config)
    start = time.monotonic()
    graphdef, params, losses = train(config)
    seconds = time.monotonic() - start
    result = {
        "environment": environment,
        "dataset": config.data.name,
        "split": config.data.val_split,
        "seed": config.train.seed,
        "steps": config.train.steps,
        "train_seconds": round(seconds),
        "losses": losses,
        **score(config, graphdef, params),
    }
    measure.write_json(result, chosen.json)


def train(config):
    """Trains for `config.train.steps`.

    Args:
      config: ConfigDict of a run.

    Returns:
      nnx.GraphDef and nnx.State of the network, and a dict from step to the mean loss since the entry before.
    """
    with_background = config.copy_and_resolve_references()
    with_background.data.class_names = ("background", *config.data.class_names)
    graphdef, params = nnx.split(build.build_model(with_background, config.train.seed))
    optimizer = clipped_optimizer(config, params)
    if config.model.init_from:
        params, report = load_weights(params, config.model.init_from)
        print(f"started from {report}")
    state = TrainState(jnp.int32(0), params, optimizer.init(params), jax.random.key(config.train.seed))
    step_function = jax.jit(make_step(graphdef, optimizer, cross_entropy_of_masks), donate_argnums=0)
    progress, losses, window = Progress("train on masks", config.train.steps, "steps"), {}, []
    with contextlib.closing(mask_batches(config)) as batches:
        for step in range(1, config.train.steps + 1):
            state, loss = step_function(state, next(batches))
            window.append(loss)
            if step % config.log.every == 0 or step == config.train.steps:
                losses[step], window = float(np.mean(jax.device_get(window))), []
                progress.update(step, f"loss {losses[step]:.3f}")
    return graphdef, state.params, losses


def cross_entropy_of_masks(outputs, batch):
    """Computes `cross_entropy` of the cells' class scores, enlarged to the crop, from RMLOutputs and a batch."""
    return cross_entropy(resize_bilinear(outputs.cam_logits, batch["mask"].shape[1:]), batch["mask"])


def cross_entropy(logits, masks):
    """Computes the mean cross-entropy over the annotated pixels.

    Args:
      logits: float32 [B, H, W, 1 + C].
      masks: uint8 [B, H, W], 0 background, 1..C classes, 255 not annotated.

    Returns:
      float32 scalar, 0 if no pixel is annotated.
    """
    annotated = masks != IGNORE
    values = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(annotated, masks, 0))
    return jnp.sum(values * annotated) / jnp.maximum(annotated.sum(), 1)


def mask_batches(config):
    """Returns an endless iterator over the batches of `rml_jax.data.pipeline.train_batches`, with masks.

    Args:
      config: ConfigDict of a run.

    Returns:
      grain.DatasetIterator of dicts of `image` (uint8 [B, S, S, 3]), `box` (int32 [B, 4]) and `mask` (uint8
      [B, S, S]).
    """
    source = make_source(config.data, config.data.train_split, with_masks=True)
    to_example = functools.partial(
        _to_example,
        num_classes=1 + len(config.data.class_names),
        crop_size=config.train.crop_size,
        **config.augment.to_dict(),
    )
    stream = grain.MapDataset.source(source).seed(config.train.seed).shuffle().repeat().random_map(to_example)
    stream = stream.batch(config.train.batch_size, drop_remainder=True)
    return iter(stream.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))


def _to_example(item, rng, num_classes, crop_size, scale, flip, **light):
    start = rng.bit_generator.state
    view = augment(item["image"], rng, crop_size=crop_size, scale=scale, flip=flip, **light)

    def same_place(planes):
        rng.bit_generator.state = start
        return augment(planes, rng, crop_size=crop_size, scale=scale, flip=flip)["image"]

    return view | {"mask": resample_mask(item["mask"], num_classes, same_place)}


def resample_mask(mask, num_classes, resample):
    """Resamples a mask by a function for images.

    Each class is resampled by itself; a pixel gets the class with the largest share of it.

    Args:
      mask: uint8 [H, W], 0..K-1, 255 for pixels that are not annotated.
      num_classes: K.
      resample: function from uint8 [H, W, 3] to uint8 [S, S, 3], 0 outside the image.

    Returns:
      uint8 [S, S], 255 outside the image.
    """
    values = np.array([*range(num_classes), IGNORE], np.uint8)
    planes = np.where(mask[..., None] == values, 255, 0).astype(np.uint8)
    planes = np.pad(planes, ((0, 0), (0, 0), (0, -len(values) % 3)))
    shares = np.concatenate(
        [resample(np.ascontiguousarray(part)) for part in np.split(planes, planes.shape[-1] // 3, axis=-1)],
        axis=-1,
    )[..., : len(values)]
    return np.where(shares.any(axis=-1), values[shares.argmax(axis=-1)], IGNORE).astype(np.uint8)


def score(config, graphdef, params):
    """Scores the masks of the validation images.

    Args:
      config: ConfigDict of a run.
      graphdef, params: the network, see `train`.

    Returns:
      Dict with the number of `images`, `miou`, and `iou` by class.
    """
    source = make_source(config.data, config.data.val_split, with_masks=True)
    smallest = smallest_side(build.backbone(config), (1.0,))

    @jax.jit
    def predict(params, images, sizes):
        logits = nnx.merge(graphdef, params)(normalize(images), sizes=sizes, with_context=False).cam_logits
        stride = build.stride(config)
        return resize_inside(logits, ceil_div(sizes, stride), images.shape[1:3], sizes).argmax(axis=-1)

    scores, progress = (
        Scores(("background", *config.data.class_names)),
        Progress("eval", len(source), "images"),
    )
    for index in range(len(source)):
        item = source[index]
        size, canvas = place(item["image"].shape[:2], config.eval.canvases, smallest)
        image = pad_image(item["image"], size, canvas)
        mask = np.asarray(predict(params, image[None], np.int32([size])))[0].astype(np.uint8)
        scores.add("masks", "cells", index, crop_labels(mask, size, item["mask"].shape), item["mask"])
        progress.update(index + 1)
    return {
        "images": len(source),
        "miou": scores.mean_iou()["masks"]["cells"],
        "iou": scores.iou()["masks"]["cells"],
    }


if __name__ == "__main__":
    main()
