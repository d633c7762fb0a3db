"""Write an image of augmented training pairs and measure the input pipeline, before training.

The image has one row per training example: the augmented view with the box of its real pixels, captioned with its
tags; the warped view; and the part of the warped view that the losses compare with the first (the rest is white).
"""

import argparse
import contextlib
import io
import time
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageDraw

from rml_jax import visualize
from rml_jax.commands import cli
from rml_jax.data.pipeline import train_batches
from rml_jax.data.sources import make_source, with_class_names
from rml_jax.data.summary import data_summary, validation_source
from rml_jax.ops.affine import AffineRange, sample_affine, validity, warp
from rml_jax.ops.normalize import IMAGENET_MEAN, IMAGENET_STD, normalize
from rml_jax.ops.region import box_mask
from rml_jax.utils.errors import UserError
from rml_jax.utils.files import atomic_write
from rml_jax.validate import check_config

_SECONDS = 3.0  # duration of the measurement
_BOX_COLOUR = (255, 0, 255)


@cli.command
def main(arguments=None):
    """Runs the command."""
    parser = cli.Parser("rml-jax inspect", description=__doc__)
    parser.add_config(without="digits")
    parser.add_argument(
        "--out", type=Path, default="inspect.png", help="PNG file to write; %(default)s by default"
    )
    parser.add_argument(
        "--pairs", type=_count, default=8, help="training examples to show; %(default)s by default"
    )
    chosen, config = parser.parse_config(arguments, default="digits")
    cli.start_jax(config)
    print("\n".join(inspect(config, chosen.out, chosen.pairs)))


def inspect(config, path, pairs, seconds=_SECONDS):
    """Writes an image of the first training examples and measures the pipeline.

    Args:
      config: ConfigDict of a run.
      path: pathlib.Path of the PNG.
      pairs: number of examples, drawn as in the run's first steps.
      seconds: duration of the measurement.

    Returns:
      Lines of text: the training set, the file written, images per second.

    Raises:
      UserError: if the configuration, the data or the path is wrong.
    """
    config = with_class_names(config)
    check_config(config)
    source = make_source(config.data, config.data.train_split, with_masks=False)
    with contextlib.closing(train_batches(config, source)) as batches:
        rows = []
        for step in range(-(-pairs // config.train.batch_size)):
            rows += _rows(next(batches), _transform(config, step), source.class_names)
        images, captions = zip(*rows[:pairs], strict=True)
        _write(visualize.grid(images, captions), path)
        begin, count = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - begin) < seconds:
            count += len(next(batches)["image"])
    return [
        *data_summary(config, source, validation_source(config)),
        f"first {pairs} training examples: {path}",
        f"pipeline: {count / elapsed:.0f} images/s in batches of {config.train.batch_size}, "
        f"{config.data.workers} workers",
    ]


def _transform(config, step):
    """Returns the transforms A of a training step (`rml_jax.training.step`), float32 [B, 2, 3]."""
    key, _ = jax.random.split(jax.random.fold_in(jax.random.key(config.train.seed), step))
    return sample_affine(key, config.train.batch_size, AffineRange(**config.affine))


def _rows(batch, theta, class_names):
    """Returns one row of images with captions for each example of a batch."""
    size = batch["image"].shape[1:3]
    images = normalize(batch["image"], batch["box"])
    valid = np.asarray(validity(theta, box_mask(batch["box"], size, size)))
    views, warped_views = _to_uint8(images), _to_uint8(warp(images, theta))
    rows = []
    for view, warped, mask, box, tags in zip(
        views, warped_views, valid, batch["box"], batch["tags"], strict=True
    ):
        names = [name for name, tag in zip(class_names, tags, strict=True) if tag]
        compared = np.where(mask[..., None], warped, np.uint8(255))
        captions = (", ".join(names) or "(no tag)", "warped", "compared")
        rows.append(((_with_box(view, box), warped, compared), captions))
    return rows


def _to_uint8(normalized):
    """Undoes `normalize`: float32 [B, H, W, 3] to uint8."""
    pixels = np.asarray(normalized) * IMAGENET_STD + IMAGENET_MEAN
    return np.clip(np.rint(255 * pixels), 0, 255).astype(np.uint8)


def _with_box(image, box):
    top, left, bottom, right = map(int, box)
    drawn = Image.fromarray(image)
    ImageDraw.Draw(drawn).rectangle((left, top, right - 1, bottom - 1), outline=_BOX_COLOUR)
    return np.asarray(drawn)


def _write(pixels, path):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    try:
        atomic_write(path, file.getvalue())
    except OSError as error:
        raise UserError(f"--out={path}: {error.strerror or error}, expected a file to write to") from error


def _count(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number from 1")
    return int(text)
