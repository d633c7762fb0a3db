"""Shows what the network sees, before a step is trained:

    rml-jax inspect --config=FILE[:VARIANT] [--out=inspect.png] [--pairs=8] [--config.key=value ...]

One row per training example, below its tags: the augmented view with the box of its real pixels, its transformed
twin, where the two may be compared (the rest is white). Then the input pipeline's throughput.
"""

import contextlib
import io
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags
from PIL import Image, ImageDraw

from rml_jax import visualize
from rml_jax.commands import cli
from rml_jax.data.pipeline import train_batches
from rml_jax.data.sources import make_source, with_class_names
from rml_jax.data.summary import data_summary, validation_source
from rml_jax.ops.affine import AffineRange, box_mask, sample_affine, validity, warp
from rml_jax.ops.normalize import IMAGENET_MEAN, IMAGENET_STD, normalize
from rml_jax.utils.errors import UserError
from rml_jax.utils.files import atomic_write
from rml_jax.validate import check_config

_OUT = flags.DEFINE_string("out", "inspect.png", "Picture to write, PNG.")
_PAIRS = flags.DEFINE_integer("pairs", 8, "Training examples to show.", lower_bound=1)

_SECONDS = 3.0  # of measuring
_BOX_COLOUR = (255, 0, 255)


def main():
    """Shows what the command line says."""
    cli.run(_inspect, cli.config_file(default="digits"))


def _inspect(config):
    lines = inspect(config, Path(_OUT.value), _PAIRS.value)
    print("\n".join(lines))


def inspect(config, path, pairs, seconds=_SECONDS):
    """Writes the contact sheet of the first training examples and measures the pipeline.

    Args:
      config: ConfigDict of a run.
      path: pathlib.Path of the PNG.
      pairs: examples to show; their random draws are those of the run's first steps.
      seconds: how long to measure.

    Returns:
      Lines of text: what the training set is, what was written, images a second.

    Raises:
      UserError: for what is wrong with the configuration, the data or the path.
    """
    config = with_class_names(config)
    check_config(config)
    source = make_source(config.data, config.data.train_split, with_masks=False)
    with contextlib.closing(train_batches(config, source)) as batches:
        rows = []
        for step in range(-(-pairs // config.train.batch_size)):
            rows += _rows(next(batches), _transform(config, step), source.class_names)
        pictures, captions = zip(*rows[:pairs], strict=True)
        _write(visualize.grid(pictures, captions), path)
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
    """The transform A of a training step (`rml_jax.training.step`), float32 [B, 2, 3]."""
    key, _ = jax.random.split(jax.random.fold_in(jax.random.key(config.train.seed), step))
    return sample_affine(key, config.train.batch_size, AffineRange(**config.affine))


def _rows(batch, theta, class_names):
    """One row of pictures with their captions per example of a batch."""
    size = batch["image"].shape[1:3]
    images = normalize(batch["image"], batch["box"])
    valid = np.asarray(validity(theta, box_mask(batch["box"], size, size)))
    views, twins = _pictures(images), _pictures(warp(images, theta))
    rows = []
    for view, twin, mask, box, tags in zip(views, twins, valid, batch["box"], batch["tags"], strict=True):
        names = [name for name, tag in zip(class_names, tags, strict=True) if tag]
        compared = np.where(mask[..., None], twin, np.uint8(255))
        captions = (", ".join(names) or "(no tag)", "twin", "compared")
        rows.append(((_with_box(view, box), twin, compared), captions))
    return rows


def _pictures(normalized):
    """The pictures that `normalize` made float32 [B, H, W, 3] of, as uint8."""
    pixels = np.asarray(normalized) * IMAGENET_STD + IMAGENET_MEAN
    return np.clip(np.rint(255 * pixels), 0, 255).astype(np.uint8)


def _with_box(image, box):
    top, left, bottom, right = map(int, box)
    picture = Image.fromarray(image)
    ImageDraw.Draw(picture).rectangle((left, top, right - 1, bottom - 1), outline=_BOX_COLOUR)
    return np.asarray(picture)


def _write(pixels, path):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    try:
        atomic_write(path, file.getvalue())
    except OSError as error:
        raise UserError(f"--out={path}: {error.strerror or error}, expected a file to write to") from error


if __name__ == "__main__":
    main()
