"""Pseudo masks of a whole split, for training an ordinary segmentation network on them (docs/second_stage.md)."""

import io
import json
import sys

import numpy as np
from PIL import Image

from rml_jax.data.sources import SkipBad
from rml_jax.data.summary import item_tags
from rml_jax.evaluation.masks import file_numbers, palette_png
from rml_jax.inference.datasets import LABEL_MAP_FILE, label_map, write_list
from rml_jax.labels import BACKGROUND, IGNORE
from rml_jax.stages.canvas import crop_labels
from rml_jax.stages.runner import StageRunner
from rml_jax.utils.errors import UserError
from rml_jax.utils.files import write_file

_JPEG = {"quality": 95, "subsampling": 0}


def make_pseudo_masks(graphdef, params, source, indices, config, output, progress):
    """Computes the pseudo masks of some images and hands each to an output.

    The classes of an image are its given tags. A pixel is foreground if it is foreground against the background
    score `pseudo_label.high`, background if it is background against `pseudo_label.low` too, and 255 otherwise
    (docs/method.md, Pseudo labels). With `pseudo_label.region_contrast`, both scores are moved, for each image, as in
    training. The masks of both scores are those of the one chain in `eval.stages`, at full
    resolution.

    Args:
      graphdef, params: the split `RML`.
      source: random-access source, without masks.
      indices: of the images.
      config: ConfigDict of the run.
      output: PseudoFolder.
      progress: called with the number of images done.

    Raises:
      UserError: if an image can't be read, unless `data.skip_bad` is set: it is then reported and left out.
    """
    config = config.copy_and_resolve_references()
    config.eval.region_contrast = config.pseudo_label.region_contrast
    runner = StageRunner(config, graphdef)
    params = runner.replicate(params)
    grouper = runner.grouper(config.eval.batch_size * runner.devices)
    done = 0
    for batch in _batches(source, indices, grouper):
        for (_, item, _), mask in zip(batch.entries, _masks_of(batch, runner, params, config), strict=True):
            output.save(item, mask)
        done += len(batch.entries)
        progress(done)


def _batches(source, indices, grouper):
    for index in indices:
        try:
            item = source.source[index] if isinstance(source, SkipBad) else source[index]
        except UserError as error:
            if not isinstance(source, SkipBad):
                raise
            print(f"left out: {error}", file=sys.stderr)
            continue
        yield from grouper.add(index, item)
    yield from grouper.rest()


def _masks_of(batch, runner, params, config):
    """Returns the pseudo masks of a batch's images, uint8 [h, w] each, at the images' own size."""
    maps, _ = runner.maps(params, batch)
    (slots,) = runner.slots(np.stack([item["tags"] > 0 for item in batch.items]))
    (stage,), (base,) = runner.stages.stages, runner.stages.bases
    high, low = config.pseudo_label.high, config.pseudo_label.low
    shift = 0.0
    if runner.stages.region_contrast:
        middle = (high + low) / 2
        shift = np.asarray(runner.soft(batch, maps, slots, {base: middle})["backgrounds"][base]) - middle

    def masks(background):
        found, _ = runner.refined(batch, maps, slots, {base: background + shift}, choose=False)
        return np.asarray(found[stage])

    labels = join_thresholds(masks(high), masks(low))
    return [
        crop_labels(mask, size, item["image"].shape[:2])
        for (_, item, size), mask in zip(batch.entries, labels, strict=False)  # A batch may be filled up.
    ]


def join_thresholds(high, low):
    """Joins masks of a high and a low background score by the rule of `rml_jax.ops.pseudo_labels`.

    Args:
      high, low: uint8 [...], 0 background, 1..C classes.

    Returns:
      uint8 [...]: the class where `high` has one, 0 where both are background, 255 elsewhere.
    """
    return np.where(high > 0, high, np.where(low > 0, IGNORE, BACKGROUND)).astype(np.uint8)


def image_ids(source):
    """Returns the ids of a source's images, without decoding them where the source can tell."""
    items = item_tags(source)
    return [name for name, _ in items] if items else [source[index]["id"] for index in range(len(source))]


def pseudo_settings(config, step, digest, split):
    """Returns what determines the masks of a split, as a JSON-like dict: two of the same are equal masks.

    `mask_values` are the data's own, or [] for 1..C where 255 is one of them: here, 255 is unsure.
    """
    data, (stage,) = config.data, config.eval.stages
    return {
        "data": data.name,
        "split": split,
        "classes": list(data.class_names),
        "mask_values": [] if IGNORE in data.mask_values else list(data.mask_values),
        "step": step,
        "parameters": digest,
        "stage": stage,
        "high": config.pseudo_label.high,
        "low": config.pseudo_label.low,
        "region_contrast": config.pseudo_label.region_contrast,
        "scales": list(config.cam.scales),
        "flip": config.cam.flip,
        "crf": config.eval.crf,
        "dilations": list(config.pseudo_label.dilations),
        "iterations": config.pseudo_label.iterations,
    }


class PseudoFolder:
    """A folder of pseudo masks in PASCAL VOC's layout.

    pseudo-SPLIT.json                  what made them
    SegmentationClass/ID.png           palette PNG, numbered as `pseudo_settings` says, 255 where unsure
    JPEGImages/ID.jpg                  the image, on request
    ImageSets/Segmentation/SPLIT.txt   the ids, written when all masks are
    labelmap.txt                       lines NAME:RED,GREEN,BLUE::

    A mask that is there already is kept, so that a stopped command can be repeated. Several processes may write to
    one folder.

    Args:
      root: pathlib.Path.
      settings: from `pseudo_settings`.
      with_images: whether images are written, too.

    Attributes:
      images: number of the masks that this object saved.
    """

    def __init__(self, root, settings, with_images):
        self._root, self._settings, self._with_images = root, settings, with_images
        self._numbers = file_numbers(tuple(settings["mask_values"]))
        self._label_map = label_map(settings["classes"], tuple(settings["mask_values"]))
        self._record = root / f"pseudo-{settings['split']}.json"
        self._pixels = self._unsure_pixels = self.images = 0

    def open(self):
        """Makes the folder, or checks that it holds masks of the same settings.

        Raises:
          UserError: if it has other files, or masks of other settings, or can't be written to.
        """
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            if self._record.exists():
                self._check_record()
            elif any(self._root.iterdir()) and not any(self._root.glob("pseudo-*.json")):
                raise UserError(
                    f"--out={self._root}: found files in it, expected a new or empty folder, or one to go on with"
                )
            else:
                write_file(self._record, json.dumps(self._settings, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"--out={self._root}: {error.strerror}, expected a folder to write to") from error

    def _check_record(self):
        try:
            found = json.loads(self._record.read_text(encoding="utf-8"))
            changed = [key for key, value in self._settings.items() if found.get(key) != value]
        except (ValueError, AttributeError) as error:
            raise UserError(f"{self._record}: {error}, expected what `rml-jax pseudo` writes") from error
        if changed:
            key = changed[0]
            raise UserError(
                f"{self._record}: found masks made with {key} {found.get(key)!r}, expected {self._settings[key]!r} "
                "or another --out"
            )

    def missing(self, ids):
        """Returns the positions of the ids that have no mask yet."""
        return [index for index, name in enumerate(ids) if not self._mask(name).exists()]

    def save(self, item, mask):
        """Saves the mask, uint8 [H, W], of an item of a source."""
        if self._with_images:
            file = io.BytesIO()
            Image.fromarray(item["image"]).save(file, "JPEG", **_JPEG)
            write_file(self._root / "JPEGImages" / f"{item['id']}.jpg", file.getvalue())
        # Last, since its presence says that the image is done.
        write_file(self._mask(item["id"]), palette_png(self._numbers[mask]))
        self.images += 1
        self._pixels += mask.size
        self._unsure_pixels += int((mask == IGNORE).sum())

    @property
    def unsure(self):
        """Share of the saved masks' pixels that is 255."""
        return self._unsure_pixels / max(self._pixels, 1)

    def finish(self, ids):
        """Writes the label map and the list of those ids that have a mask. Returns their number."""
        names = [name for name in ids if self._mask(name).exists()]
        write_file(self._root / LABEL_MAP_FILE, self._label_map)
        write_list(self._root, self._settings["split"], names)
        return len(names)

    def _mask(self, name):
        return self._root / "SegmentationClass" / f"{name}.png"
