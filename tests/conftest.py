"""Fixtures shared by the tests."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
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


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Programs that several tests need are compiled once per session."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


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


@pytest.fixture(scope="session")
def build():
    """Function (make, seed=0) -> the network of `make()` with random parameters of every kind.

    Drawn by NumPy, which takes a hundredth of flax's time here; biases and norms are not left at 0 and 1, where
    mistakes hide.
    """

    def build(make, seed=0):
        graph, state = nnx.split(nnx.eval_shape(make))
        rng = np.random.default_rng(seed)

        def draw(path, leaf):
            values = rng.normal(size=leaf.shape)
            if leaf.ndim == 1:
                values = 0.2 * values + ("scale" in jax.tree_util.keystr(path))
            else:
                values /= np.sqrt(np.prod(leaf.shape[:-1]))
            return jnp.asarray(values, leaf.dtype)

        return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, state))

    return build
