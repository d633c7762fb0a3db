"""The embedded data set: scenes of handwritten digits on photographs, generated from what scikit-learn ships.

Each scene is a crop of a photograph with one or two digit scans blended in. The masks are exact, so training from
tags can be scored by pixel, offline and in minutes on a CPU.
"""

import colorsys
import functools

import numpy as np
from PIL import Image, ImageFilter

from rml_jax.data.sources.layout import DataLayout
from rml_jax.utils.errors import UserError

CLASS_NAMES = tuple(str(digit) for digit in range(10))
SPLITS = ("train", "val")

# scikit-learn's 1,797 scans are ordered by writer, so the last fifth is mostly by writers that the first part lacks.
_TRAIN_SCANS = 1437
# A digit may hide at most this share of another one: a sliver can't be recognised.
_MAX_HIDDEN = 0.2
_PLACEMENT_TRIES = 20


class DigitScenes:
    """Random-access source of scenes. Each is a pure function of (split, seed, index).

    `source[i]` is a dict with `id` (str), `image` (uint8 [size, size, 3]), `tags` (float32 [10], 1 for each digit
    that is visible) and, only where `with_masks` is set, `mask` (uint8 [size, size], 0 background, 1 + digit).

    Args:
      split: "train" or "val"; the two use different scans.
      num_scenes: length of the source.
      seed: seed of all scenes.
      with_masks: whether items carry their masks.
      size: side of the scene in pixels.
      digits: least and greatest number of digits in a scene.
      digit_size: least and greatest side of a digit scan in pixels.
      background_brightness: factor on the background photograph.

    Raises:
      UserError: for an unknown split, an empty source, or a digit larger than the scene.
    """

    class_names = CLASS_NAMES

    def __init__(
        self,
        split,
        num_scenes,
        seed=0,
        *,
        with_masks=False,
        size=64,
        digits=(1, 2),
        digit_size=(28, 44),
        background_brightness=0.55,
    ):
        if split not in SPLITS:
            raise UserError(f"digits has no split {split!r}: expected one of {', '.join(SPLITS)}")
        if num_scenes < 1:
            raise UserError(f"digits split {split!r} is empty: expected at least 1 scene, found {num_scenes}")
        if digit_size[1] > size:
            raise UserError(
                f"config.data.scene.digit_size is {tuple(digit_size)}: expected at most scene.size = {size}"
            )
        self.split = split
        self.num_scenes = num_scenes
        self.seed = seed
        self.with_masks = with_masks
        self.size = size
        self.digits = tuple(digits)
        self.digit_size = tuple(digit_size)
        self.background_brightness = background_brightness

    @property
    def most_tags(self):
        """The greatest number of tags that a scene can have."""
        return min(self.digits[1], len(CLASS_NAMES))

    def __len__(self):
        return self.num_scenes

    def __getitem__(self, index):
        index = int(index)
        if not 0 <= index < self.num_scenes:
            raise IndexError(f"scene {index} of {self.num_scenes}")
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index])
        image, mask = self._scene(rng)
        present = np.bincount(mask.ravel(), minlength=11)[1:] > 0
        item = {"id": f"{self.split}_{index:06d}", "image": image, "tags": present.astype(np.float32)}
        if self.with_masks:
            item["mask"] = mask
        return item

    def _scene(self, rng):
        """Draws one scene: image uint8 [size, size, 3] and mask uint8 [size, size]."""
        scans, labels = _scans(self.split)
        photos = _photos()
        behind = rng.integers(len(photos))
        background = _photo_crop(photos[behind], self.size, rng, blur=1.5)
        image = background.astype(np.float32) * self.background_brightness
        mask = np.zeros((self.size, self.size), np.uint8)
        for _ in range(rng.integers(self.digits[0], self.digits[1] + 1)):
            scan = rng.integers(len(scans))
            side = int(rng.integers(self.digit_size[0], self.digit_size[1] + 1))
            ink = _enlarge(scans[scan], side)
            place = _free_place(mask, ink > 0.5, rng)
            if place is None:
                continue
            window = (slice(place[0], place[0] + side), slice(place[1], place[1] + side))
            # Light colours with the other photograph's texture: no constant colour tells digits from the background.
            colour = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.0, 0.6), rng.uniform(0.85, 1.0))
            texture = _photo_crop(photos[1 - behind], side, rng, blur=0.0)
            fill = 0.75 * 255.0 * np.asarray(colour, np.float32) + 0.25 * texture
            image[window] += ink[..., None] * (fill - image[window])
            mask[window][ink > 0.5] = labels[scan] + 1
        return np.clip(np.rint(image), 0, 255).astype(np.uint8), mask


def _free_place(mask, glyph, rng):
    """Draws a place (top, left) where the glyph hides little of other digits, or None after too many tries."""
    side, size = glyph.shape[0], mask.shape[0]
    occupied = np.bincount(mask.ravel(), minlength=11)
    for _ in range(_PLACEMENT_TRIES):
        top, left = rng.integers(0, size - side + 1, size=2)
        hidden = np.bincount(mask[top : top + side, left : left + side][glyph], minlength=11)
        if np.all(hidden[1:] <= _MAX_HIDDEN * occupied[1:]):
            return top, left
    return None


def _photo_crop(photo, side, rng, blur):
    """Crops a random square of 1 to 3 times `side` pixels, reduced to float32 [side, side, 3] in 0..255."""
    extent = int(rng.integers(side, 3 * side + 1))
    extent = min(extent, *photo.shape[:2])
    top = rng.integers(0, photo.shape[0] - extent + 1)
    left = rng.integers(0, photo.shape[1] - extent + 1)
    crop = Image.fromarray(photo[top : top + extent, left : left + extent]).resize(
        (side, side), Image.BILINEAR
    )
    if blur:
        crop = crop.filter(ImageFilter.GaussianBlur(blur))
    return np.asarray(crop, np.float32)


def _enlarge(scan, side):
    """Resizes an 8x8 scan with grey levels 0..16 to ink, float32 [side, side] in 0..1."""
    ink = Image.fromarray(scan.astype(np.float32) / 16.0).resize((side, side), Image.BICUBIC)
    return np.clip(np.asarray(ink), 0.0, 1.0)


@functools.cache
def _scans(split):
    from sklearn.datasets import load_digits  # Takes seconds, and other data sets don't need it.

    digits = load_digits()
    part = slice(None, _TRAIN_SCANS) if split == "train" else slice(_TRAIN_SCANS, None)
    return digits.images[part], digits.target[part]


@functools.cache
def _photos():
    from sklearn.datasets import load_sample_images

    return tuple(load_sample_images().images)


def _make(data_config, split, with_masks):
    num_scenes = data_config.num_train if split == data_config.train_split else data_config.num_val
    return DigitScenes(split, num_scenes, data_config.seed, with_masks=with_masks, **data_config.scene)


LAYOUT = DataLayout(
    make=_make,
    class_names=CLASS_NAMES,
    licence="Made from data that scikit-learn ships: the UCI handwritten digits (CC BY 4.0) and two photographs "
    "(CC BY 2.0, by danielbuechele and vultilion on Flickr).",
)
