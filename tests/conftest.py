"""Fixtures shared by the tests."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@dataclasses.dataclass(frozen=True)
class VocFiles:
    """A miniature VOC folder: two classes, images of noise, masks of stripes."""

    root: Path
    class_names: tuple[str, ...] = ("cat", "dog")
    mask_values: tuple[int, ...] = (8, 12)

    def image_path(self, image_id):
        return self.root / "JPEGImages" / f"{image_id}.jpg"

    def mask_path(self, image_id):
        return self.root / "SegmentationClassAug" / f"{image_id}.png"

    def split_path(self, split):
        return self.root / "ImageSets" / "Segmentation" / f"{split}.txt"

    def write_image(self, image_id, pixels):
        """Writes uint8 [H, W, 3]."""
        Image.fromarray(pixels).save(self.image_path(image_id), quality=95)

    def write_mask(self, image_id, numbers):
        """Writes uint8 [H, W], class numbers as they are stored, as a palette PNG."""
        picture = Image.frombytes("P", numbers.shape[::-1], np.ascontiguousarray(numbers).tobytes())
        picture.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
        picture.save(self.mask_path(image_id))

    def read_stored_mask(self, image_id):
        return np.array(Image.open(self.mask_path(image_id)))

    def write_split(self, split, text):
        self.split_path(split).write_bytes(text.encode())


@pytest.fixture
def make_voc_folder(tmp_path):
    """Function (train=5, val=3) -> VocFiles, with images train_000.jpg, ... of several sizes.

    Image i has a cat, a dog or both, by i modulo 3.
    """

    def make(train=5, val=3):
        files = VocFiles(tmp_path / "voc")
        for folder in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
            (files.root / folder).mkdir(parents=True)
        for split, count in (("train", train), ("val", val)):
            ids = [f"{split}_{number:03d}" for number in range(count)]
            files.write_split(split, "\n".join(ids) + "\n")
            for number, image_id in enumerate(ids):
                rng = np.random.default_rng([count, number])
                height, width = rng.integers(20, 41, size=2)
                files.write_image(image_id, rng.integers(1, 256, (height, width, 3)).astype(np.uint8))
                mask = np.zeros((height, width), np.uint8)
                mask[2:6] = (8, 12, 8)[number % 3]
                mask[6:9] = (8, 12, 12)[number % 3]
                mask[12:14] = 255
                files.write_mask(image_id, mask)
        return files

    return make
