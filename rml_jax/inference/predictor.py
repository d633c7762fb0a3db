"""A trained network as a function from images to masks: `rml_jax.load`."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from PIL import Image

from rml_jax.config import load_config
from rml_jax.data.images import read_image, to_rgb, to_uint8
from rml_jax.data.tags import tag_key
from rml_jax.evaluation.sweep import CONTRAST_STAGE, contrast_batch, make_contrast_sweep
from rml_jax.inference.tiles import RowBlender, tile_starts
from rml_jax.models import build
from rml_jax.ops.pseudo_label import gather_classes
from rml_jax.stages.canvas import crop_labels
from rml_jax.stages.network import make_tile_network
from rml_jax.stages.registry import background_key, base_stage
from rml_jax.stages.runner import FEW_SLOTS, TAG_THRESHOLD, Batch, StageRunner
from rml_jax.utils import hub
from rml_jax.utils.errors import UserError
from rml_jax.validate import check_config

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence

    from flax import nnx
    from jaxtyping import Bool, Float, Integer, UInt8
    from ml_collections import ConfigDict

LARGE = ("tiles", "reduce")
"""How to predict an image that fits on no canvas: in overlapping tiles, or reduced to fit, as in evaluation."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The prediction for one image of H x W pixels.

    Attributes:
      mask: uint8 [H, W], 0 background, c for `classes[c - 1]`.
      classes: the C names of all classes.
      scores: float32 [C], the sigmoid of every class's logit; the maximum over tiles.
      tags: dict from the K classes allowed in the mask to their scores: the given ones, or those above the threshold.
      probabilities: float32 [H, W, 1 + K], of the background and of `tags` in their order; None if not requested.
      cams: float32 [H, W, K] in [0, 1], class activation maps of `tags`; None if not requested.
      tiles: number of tiles; 1 for an image that fits on a canvas.
    """

    mask: UInt8[np.ndarray, "h w"]
    classes: tuple[str, ...]
    scores: Float[np.ndarray, " c"]
    tags: dict[str, float]
    probabilities: Float[np.ndarray, "h w k+1"] | None
    cams: Float[np.ndarray, "h w k"] | None
    tiles: int = 1


def load(
    path: str | os.PathLike,
    *,
    checkpoint: str | None = None,
    stage: str | None = None,
    scales: Sequence[float] | None = None,
    background: float | None = None,
    region_contrast: float | None = None,
    tag_threshold: float = TAG_THRESHOLD,
    large: str = "tiles",
) -> Predictor:
    """Loads a trained network for prediction.

    Args:
      path: work directory of a run; or an exported folder or its model.safetensors (`rml_jax.inference.export`); or
        the name of an exported model on the Hugging Face hub, USER/MODEL or USER/MODEL@REVISION.
      checkpoint: of the run, "newest", "best" or a step in digits; None uses its eval.checkpoint.
      stage: the stage or chain of stages that computes the mask (`rml_jax.stages`), such as "cam" or "par+crf"; None
        uses the last of the run's eval.stages.
      scales: factors on the image's size for the multi-scale CAM; None uses the run's.
      background: score of the background in that stage; None uses the run's eval.background.
      region_contrast: weight of the contrast by which each image's score is chosen near `background`, 0 for that
        score in every image; None uses the run's eval.region_contrast. Images in tiles have the score itself.
      tag_threshold: score above which a class is predicted to be in the image, in 0..1.
      large: "tiles" or "reduce", see LARGE.

    Returns:
      Predictor.

    Raises:
      UserError: if there is no model, it is damaged, or an option is invalid.
    """
    config, params, _ = load_model(path, checkpoint)
    return predictor_of(
        config,
        params,
        stage=stage,
        scales=scales,
        background=background,
        region_contrast=region_contrast,
        tag_threshold=tag_threshold,
        large=large,
    )


def predictor_of(
    config: ConfigDict,
    params: nnx.State,
    *,
    stage: str | None = None,
    scales: Sequence[float] | None = None,
    background: float | None = None,
    region_contrast: float | None = None,
    tag_threshold: float = TAG_THRESHOLD,
    large: str = "tiles",
) -> Predictor:
    """Returns the Predictor of a loaded model (`load_model`); options as in `load`. `config` is not changed."""
    config = config.copy_and_resolve_references()
    chosen = stage or config.eval.stages[-1]
    config.eval.stages = (chosen,)
    if scales is not None:
        config.cam.scales = tuple(scales)
    if region_contrast is not None:
        config.eval.region_contrast = float(region_contrast)
    # Prediction does not use the crops of training, which may be too small for the scales.
    config.train.crop_size = max(map(max, config.eval.canvases))
    check_config(config, reads_data=False)
    if not 0 <= tag_threshold <= 1:
        raise UserError(f"tag_threshold is {tag_threshold}: expected 0 to 1")
    if background is None:
        background = config.eval.background[background_key(chosen, config.eval.background)]
    if not background >= 0:  # nan is neither.
        raise UserError(f"background is {background}: expected a score of at least 0")
    if large not in LARGE:
        raise UserError(f"large is {large!r}: expected one of {', '.join(LARGE)}")
    return Predictor(config, params, background, tag_threshold, large)


def load_model(path: str | os.PathLike, checkpoint: str | None = None) -> tuple[ConfigDict, nnx.State, int]:
    """Loads the configuration and the parameters of a run or of an exported model.

    Args:
      path, checkpoint: see `load`.

    Returns:
      ConfigDict, nnx.State of `RML`, and the training step (int) of the parameters.

    Raises:
      UserError: if there is no model, or it is damaged.
    """
    if isinstance(path, str) and hub.is_hub_name(path):
        model = hub.fetch(str(path))
        print(f"model: {model}", file=sys.stderr)
        path = model.folder
    path = Path(path)
    if path.name == "model.safetensors" or (path / "model.safetensors").exists():
        from rml_jax.inference.export.weights import read_model

        if checkpoint is not None:
            raise UserError(f"checkpoint is {checkpoint!r}: expected none beside {path}, an exported model")
        return read_model(path.parent if path.name == "model.safetensors" else path)
    if not (path / "config.json").exists():
        raise UserError(
            f"{path}: found no model, expected the work directory of a run (config.json, checkpoints) or an "
            "exported folder (config.json, model.safetensors)"
        )
    # Imported here, since an exported model is read without orbax.
    from rml_jax.checkpoint import read_params

    config = load_config(path / "config.json")
    if checkpoint is not None:
        config.eval.checkpoint = checkpoint
        check_config(config, reads_data=False)
    _, abstract = build.build_graph(config)
    step, params = read_params(path, abstract, config.eval.checkpoint, config.checkpoint.best_metric)
    return config, params, step


class Predictor:
    """A network with the settings of one stage; see `load`.

    Programs are compiled once per canvas (`eval.canvases`), on first use.

    Args:
      config: ConfigDict with the one stage in `eval.stages`.
      params: nnx.State of `RML`.
      background, tag_threshold, large: see `load`.

    Attributes:
      background: score of the background; may be set.
      classes: the C names.
      stage: name of the stage.
      config: as given.
    """

    def __init__(self, config, params, background, tag_threshold, large):
        self.config, self.classes, (self.stage,) = config, tuple(config.data.class_names), config.eval.stages
        graphdef, _ = build.build_graph(config)
        self._runner = runner = StageRunner(config, graphdef, probabilities_of=(self.stage,))
        self._params = runner.replicate(params)
        self._tile_network = runner.shard_map(make_tile_network(graphdef, runner.stages), 1, 5)
        self._gather = runner.shard_map(gather_classes, 0, 2)
        self._base, self.background = base_stage(self.stage), background
        self._tag_threshold, self._large = tag_threshold, large
        # Tiles have the size of the largest canvas, the first of equal ones.
        self._tile = max(runner.canvases, key=lambda canvas: canvas[0] * canvas[1])

    def __call__(
        self,
        image: str
        | os.PathLike
        | Image.Image
        | UInt8[np.ndarray, "h w 3"]
        | UInt8[np.ndarray, "h w 4"]
        | UInt8[np.ndarray, "h w"],
        tags: Sequence[str] | None = None,
    ) -> Prediction:
        """Predicts one image.

        Args:
          image: path of an image file; or a pillow image; or an array, uint8 [H, W, 3], [H, W] or [H, W, 4].
          tags: names of the classes in it; if None, the network predicts them.

        Returns:
          Prediction.

        Raises:
          UserError: for a file that can't be read, an unsupported array, or an unknown tag.
        """
        ((_, result),) = self.stream([(None, as_image(image), tags)], batch_size=self._runner.devices)
        return result

    def stream(
        self,
        images: Iterable[tuple[Hashable, UInt8[np.ndarray, "h w 3"], Sequence[str] | None]],
        *,
        with_maps: bool = True,
        batch_size: int | None = None,
    ) -> Iterator[tuple[Hashable, Prediction]]:
        """Predicts images of mixed sizes in batches.

        Args:
          images: iterable of (key, image, tags), image uint8 [h, w, 3] (`as_image`), tags as in `__call__`.
          with_maps: whether to return `probabilities` and `cams`, which take 4 (1 + 2 K) bytes per pixel.
          batch_size: images in a batch; None uses eval.batch_size times the number of devices.

        Yields:
          (key, Prediction), grouped by canvas, each as soon as its batch is full.

        Raises:
          UserError: for an unknown tag.
        """
        batch_size = batch_size or self.config.eval.batch_size * self._runner.devices
        grouper = self._runner.grouper(batch_size)
        for key, image, tags in images:
            item = {"image": image, "given": None if tags is None else allowed_classes(tags, self.classes)}
            if self._needs_tiles(image.shape[:2]):
                yield key, self._in_tiles(item, with_maps, batch_size)
                continue
            for batch in grouper.add(key, item):
                yield from self._batch(batch, with_maps)
        for batch in grouper.rest():
            yield from self._batch(batch, with_maps)

    def choose_background(
        self, images: Iterable[tuple[UInt8[np.ndarray, "h w 3"], Sequence[str] | None]]
    ) -> float:
        """Sets `background` to the score at which masks have the most contrast with the images, without annotations.

        Of the scores in the run's eval.sweep.grid, it is the one at which the masks of stage `par` have the greatest
        mean `rml_jax.ops.contrast.region_contrast` (docs/evaluation.md, Background scores without masks).

        Args:
          images: iterable of (image, tags) as in `stream`, like those to predict; some dozens are enough. Images that
            fit on no canvas are reduced.

        Returns:
          The score. It is unchanged if no class is found in any image.
        """
        runner, grid = self._runner, np.float32(self.config.eval.sweep.grid)
        program = runner.shard_map(make_contrast_sweep(runner.stages, len(self.classes)), 0, 6)
        grouper = runner.grouper(self.config.eval.batch_size * runner.devices)
        total = np.zeros(len(grid))

        def batches():
            for key, (image, tags) in enumerate(images):
                given = None if tags is None else allowed_classes(tags, self.classes)
                yield from grouper.add(key, {"image": image, "given": given})
            yield from grouper.rest()

        for batch in batches():
            maps, scores = runner.maps(self._params, batch)
            allowed = {"": self._allowed(batch.items, scores)}
            for found in contrast_batch(runner, program, batch, jax.device_get(maps), allowed, grid):
                total += found[""][CONTRAST_STAGE]
        if total.any():
            self.background = self.config.eval.sweep.grid[total.argmax()]
        return self.background

    def settings(self):
        """Returns the settings that determine a mask besides the image and the network, as a JSON-like dict."""
        return {
            "stage": self.stage,
            "scales": list(self.config.cam.scales),
            "flip": self.config.cam.flip,
            "background": self.background,
            "region_contrast": self.config.eval.region_contrast,
            "tag_threshold": self._tag_threshold,
            "large": self._large,
        }

    def _needs_tiles(self, size):
        height, width = (max(side, self._runner.smallest) for side in size)
        fits = any(height <= canvas[0] and width <= canvas[1] for canvas in self._runner.canvases)
        return self._large == "tiles" and not fits

    def _allowed(self, items, scores):
        """Returns the given tags of each image, or those predicted from its scores: bool [B, C]."""
        given = [item["given"] for item in items]
        predicted = scores > self._tag_threshold
        return np.stack([p if g is None else g for g, p in zip(given, predicted, strict=True)])

    # --- Images that fit on a canvas ---

    def _batch(self, batch, with_maps):
        maps, scores = self._runner.maps(self._params, batch)
        allowed = self._allowed(batch.items, scores)
        # One image per device at a time, in as few slots as these need.
        at_once = self._runner.devices
        parts = []
        for first in range(0, len(batch.entries), at_once):
            rows, part = slice(first, first + at_once), batch.part(first, at_once)
            here = jax.tree.map(lambda leaf, rows=rows: leaf[rows], maps)
            parts.append((part, rows, self._refine(part, here, allowed[rows], with_maps)))
        for part, rows, refined in parts:
            yield from self._predictions(part, scores[rows], allowed[rows], *jax.device_get(refined))

    def _predictions(self, batch, scores, allowed, masks, probabilities, cams):
        """Yields (key, Prediction) of each image of a batch; `probabilities` and `cams` may be None."""
        for number, (key, item, size) in enumerate(batch.entries):
            wanted, count = item["image"].shape[:2], allowed[number].sum()
            parts = (None, None)
            if cams is not None:
                inside = np.s_[number, : size[0], : size[1]]
                normalized = _normalized(probabilities[inside][..., : 1 + count])
                parts = (_resize_maps(part, wanted) for part in (normalized, cams[inside][..., :count]))
            mask = crop_labels(masks[number], size, wanted)
            yield key, self._prediction(mask, scores[number], allowed[number], *parts)

    def _refine(self, batch, maps, allowed, with_maps, choose=True):
        """Computes the stage's masks, and probabilities and CAMs in slots, allowed classes first, or two None."""
        if not with_maps and not allowed.any():
            return np.zeros(batch.images.shape[:3], np.uint8), None, None
        (slots,) = self._runner.slots(allowed, counts=FEW_SLOTS)
        masks, probabilities = self._runner.refined(batch, maps, slots, {self._base: self.background}, choose)
        if not with_maps:
            return masks[self.stage], None, None
        cams = self._runner.call(
            self._gather, "gather", batch, maps["cams"], slots[0], slots=slots[0].shape[1]
        )
        return masks[self.stage], probabilities[self.stage], cams

    def _prediction(self, mask, scores, allowed, probabilities, cams, tiles=1):
        numbers = np.flatnonzero(allowed)
        tags = {self.classes[number]: float(scores[number]) for number in numbers}
        return Prediction(mask, self.classes, scores, tags, probabilities, cams, tiles)

    # --- Larger images ---

    def _in_tiles(self, item, with_maps, batch_size):
        image, wanted = item["image"], item["image"].shape[:2]
        size = tuple(max(side, self._runner.smallest) for side in wanted)
        if size != wanted:
            image = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
        tiles = _Tiles(image, self._tile, batch_size)
        scores, least, greatest = self._survey(tiles)
        (allowed,) = self._allowed([item], scores[None])
        mask, maps = self._join(tiles, allowed, least, greatest, with_maps)
        parts = (None, None)
        if with_maps:
            parts = (_resize_maps(part, wanted) for part in np.split(maps, [1 + allowed.sum()], axis=-1))
        return self._prediction(crop_labels(mask, size, wanted), scores, allowed, *parts, tiles=tiles.count)

    def _survey(self, tiles):
        """Computes, in a first pass over the tiles, the class scores and the range of the CAMs.

        Returns:
          float32 [C] each: the greatest scores of any tile, the least and the greatest values of the CAMs.
        """
        classes = len(self.classes)
        scores, unscaled = np.zeros(classes, np.float32), (np.zeros(classes), np.ones(classes))
        least, greatest = np.full(classes, np.inf, np.float32), np.full(classes, -np.inf, np.float32)
        for _, batch in tiles.batches(range(len(tiles.tops))):
            maps = self._tile_maps(batch, *unscaled)
            # A batch may be filled with copies of its first tile, which change no extreme.
            scores = np.maximum(scores, np.max(maps["probabilities"], axis=0))
            least = np.minimum(least, np.min(maps["least"], axis=0))
            greatest = np.maximum(greatest, np.max(maps["greatest"], axis=0))
        return scores, least, greatest

    def _join(self, tiles, allowed, least, greatest, with_maps):
        """Runs the stage on every tile, in a second pass, and blends the results.

        Returns:
          mask, uint8 [H, W], and the probabilities and CAMs, float32 [H, W, 1 + 2 K], or None if not `with_maps`.
        """
        count = allowed.sum()
        channels = 1 + 2 * count if with_maps else 1 + count
        mask = np.zeros(tiles.size, np.uint8)
        full = np.zeros((*tiles.size, channels), np.float32) if with_maps else None
        blender = RowBlender(*tiles.size, tiles.tile, channels)
        numbers = np.concatenate([[0], 1 + np.flatnonzero(allowed)]).astype(np.uint8)
        for row in range(len(tiles.tops)):
            for places, batch in tiles.batches([row]):
                maps = self._tile_maps(batch, least, greatest)
                repeated = np.tile(allowed, (len(batch.images), 1))
                # Tiles with scores of their own would differ where they meet.
                refined = self._refine(batch, maps, repeated, True, choose=False)
                _, probabilities, cams = jax.device_get(refined)
                for number, place in enumerate(places):
                    inside = np.s_[number, : tiles.tile[0], : tiles.tile[1]]
                    parts = [_normalized(probabilities[inside][..., : 1 + count])]
                    if with_maps:
                        parts.append(cams[inside][..., :count])
                    blender.add(*place, np.concatenate(parts, axis=-1))
            first, done = blender.finish_rows((*tiles.tops, tiles.size[0])[row + 1])
            mask[first : first + len(done)] = numbers[done[..., : 1 + count].argmax(axis=-1)]
            if with_maps:
                full[first : first + len(done)] = done
        return mask, full

    def _tile_maps(self, batch, least, greatest):
        count = len(batch.images)
        bounds = (np.tile(values.astype(np.float32), (count, 1)) for values in (least, greatest))
        return self._runner.call(
            self._tile_network, "tile network", batch, self._params, batch.images, batch.sizes, *bounds
        )


class _Tiles:
    """The tiles of an image.

    Args:
      image: uint8 [H, W, 3].
      canvas: (height, width) of the network's input; a tile is smaller if the image is.
      batch_size: tiles in a batch.

    Attributes:
      size: (H, W).
      tile: (height, width) of a tile.
      tops: first row of pixels of each row of tiles.
      count: number of tiles.
    """

    def __init__(self, image, canvas, batch_size):
        self._image, self._canvas, self._batch_size = image, canvas, batch_size
        self.size = image.shape[:2]
        self.tile = tuple(min(side, full) for side, full in zip(canvas, self.size, strict=True))
        self.tops, self._lefts = map(tile_starts, self.size, self.tile)
        self.count = len(self.tops) * len(self._lefts)

    def batches(self, rows):
        """Yields lists of (top, left) of the tiles in some rows of tiles, and their Batch."""
        places = [(self.tops[row], left) for row in rows for left in self._lefts]
        for start in range(0, len(places), self._batch_size):
            part = places[start : start + self._batch_size]
            entries = [(place, {"image": self._cut(*place)}, self.tile) for place in part]
            yield part, Batch(entries, self._canvas, self._batch_size)

    def _cut(self, top, left):
        return self._image[top : top + self.tile[0], left : left + self.tile[1]]


def as_image(
    image: str
    | os.PathLike
    | Image.Image
    | Integer[np.ndarray, "h w 3"]
    | UInt8[np.ndarray, "h w 4"]
    | Integer[np.ndarray, "h w"],
) -> UInt8[np.ndarray, "h w 3"]:
    """Reads or converts an image to the network's input.

    Args:
      image: path of an image file, whose EXIF orientation is applied; or a pillow image; or an array, uint8 [H, W, 4]
        or integers of any width [H, W, 3] or [H, W] (`rml_jax.data.images.to_uint8`).

    Returns:
      uint8 [H, W, 3].

    Raises:
      UserError: for a file that can't be read, and for an unsupported array.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(image, upright=True, min_side=1)
    if isinstance(image, Image.Image):
        return to_rgb(image, "the image", upright=True)
    image = np.asarray(image)
    channels = (3, 4) if image.dtype == np.uint8 else (3,)
    fits = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in channels)
    if not np.issubdtype(image.dtype, np.integer) or not fits or 0 in image.shape:
        raise UserError(
            f"the image is {image.dtype} {list(image.shape)}: expected uint8 [H, W, 3], [H, W] or [H, W, 4], or "
            "wider integers [H, W, 3] or [H, W]"
        )
    if image.dtype != np.uint8:
        image = to_uint8(image, "the image")
    return to_rgb(Image.fromarray(image), "the image")


def allowed_classes(tags: Sequence[str], classes: Sequence[str]) -> Bool[np.ndarray, " c"]:
    """Returns which classes are among some tags, bool [C]. Surrounding whitespace and case are ignored.

    Raises:
      UserError: for a tag that is not a class.
    """
    positions = {tag_key(name): number for number, name in enumerate(classes)}
    allowed = np.zeros(len(classes), bool)
    for tag in tags:
        if tag_key(tag) not in positions:
            raise UserError(f"unknown tag {tag!r}: expected some of {', '.join(classes)}")
        allowed[positions[tag_key(tag)]] = True
    return allowed


def _normalized(probabilities):
    """Scales probabilities to sum to 1; after PAR they sum to more."""
    return probabilities / probabilities.sum(axis=-1, keepdims=True)


def _resize_maps(maps, wanted):
    """Resizes maps [H, W, K] to the image's size, bilinear."""
    if maps.shape[:2] == tuple(wanted):
        return maps
    resized = [
        np.asarray(Image.fromarray(channel).resize(wanted[::-1], Image.Resampling.BILINEAR))
        for channel in np.moveaxis(maps, -1, 0)
    ]
    return np.stack(resized, axis=-1) if resized else np.zeros((*wanted, 0), np.float32)
