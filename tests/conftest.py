"""Fixtures shared by the tests."""

import dataclasses
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import settings
from PIL import Image

from rml_jax.config import default_config
from rml_jax.inference.export import weights
from rml_jax.inference.export.checksums import write_sums
from rml_jax.models import build as build_module
from tests.references.networks import random_network

# No deadlines: the first example often compiles, and the machine may be busy.
settings.register_profile("rml_jax", deadline=None)
settings.load_profile("rml_jax")


def pytest_configure(config):
    """Makes XLA optimise less in the quick tests: their programs run for milliseconds and compile for a minute.

    The slow tests compile as users do.
    """
    if config.option.markexpr == "slow" or "xla_backend_optimization_level" in os.environ.get(
        "XLA_FLAGS", ""
    ):
        return
    # The last is XLA's default, which compiles faster than `rml_jax.utils.processor.inference_options`.
    flags = [
        "--xla_backend_optimization_level=1",
        "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,"
        "LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION,LIBRARY_FUSION_TYPE_REDUCE",
    ]
    if jax.__version_info__ < (0, 11):  # Later versions have one kind of emitter.
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join([*os.environ.get("XLA_FLAGS", "").split(), *flags])


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
        """Writes stored class numbers, uint8 [H, W], as a palette PNG."""
        image = Image.frombytes("P", numbers.shape[::-1], np.ascontiguousarray(numbers).tobytes())
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
        image.save(self.mask_path(image_id))

    def read_stored_mask(self, image_id):
        return np.array(Image.open(self.mask_path(image_id)))

    def write_split(self, split, text):
        self.split_path(split).write_bytes(text.encode())


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Compiles programs that several tests need once per session, also if the tests run in several processes."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    # A folder chosen by the user is kept after the session.
    folder = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(shared / "compiled"))
    jax.config.update("jax_compilation_cache_dir", folder)  # Commands that tests start read the variable.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


@pytest.fixture
def make_voc_folder(tmp_path):
    """Returns a function (train=5, val=3) -> VocFiles, with images train_000.jpg, ... of several sizes.

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
    """Returns a function (make, seed=0) -> the network of `make()` with random parameters of every kind."""
    return random_network


@pytest.fixture(scope="session")
def original_layout():
    """Returns a function (backbone, seed=0) -> random weights of that MiTConfig in the layout of `mit_b*.pth`.

    Names and shapes are those of the SegFormer authors' model, without prefix and heads, independent of
    `rml_jax.models.layouts`.
    """

    def draw(backbone, seed=0):
        shapes, before = {}, 3
        for t in (1, 2, 3, 4):
            c, kernel, reduction = (
                of[t - 1] for of in (backbone.embed_dims, backbone.patch_sizes, backbone.sr_ratios)
            )
            hidden = c * backbone.mlp_ratio
            shapes[f"patch_embed{t}.proj"] = (c, before, kernel, kernel)
            shapes[f"patch_embed{t}.norm"] = (c,)
            for b in range(backbone.depths[t - 1]):
                shapes[f"block{t}.{b}.norm1"] = (c,)
                shapes[f"block{t}.{b}.attn.q"] = (c, c)
                shapes[f"block{t}.{b}.attn.kv"] = (2 * c, c)
                shapes[f"block{t}.{b}.attn.proj"] = (c, c)
                if reduction > 1:
                    shapes[f"block{t}.{b}.attn.sr"] = (c, c, reduction, reduction)
                    shapes[f"block{t}.{b}.attn.norm"] = (c,)
                shapes[f"block{t}.{b}.norm2"] = (c,)
                shapes[f"block{t}.{b}.mlp.fc1"] = (hidden, c)
                shapes[f"block{t}.{b}.mlp.dwconv.dwconv"] = (hidden, 1, 3, 3)
                shapes[f"block{t}.{b}.mlp.fc2"] = (c, hidden)
            shapes[f"norm{t}"] = (c,)
            before = c
        rng = np.random.default_rng(seed)
        tensors = {}
        for module, shape in shapes.items():
            scale, centre = (0.2, 1) if len(shape) == 1 else (np.prod(shape[1:]) ** -0.5, 0)
            weight = centre + scale * rng.standard_normal(shape, np.float32)
            tensors[f"{module}.weight"] = weight.astype(np.float32)
            tensors[f"{module}.bias"] = 0.2 * rng.standard_normal(shape[0], np.float32)
        return tensors

    return draw


INSECTS = ("ant", "bee", "cow")


def make_config():
    """Returns the configuration of `network`, a small network for three classes."""
    config = default_config()
    config.data.name = "insects"
    config.data.source = "folder"
    config.data.class_names = INSECTS
    config.data.mask_values = (8, 12, 15)
    config.model.variant = "mini"
    config.cam.scales, config.cam.flip = (1.0,), False
    config.cam.dtype = "model"  # "auto" depends on the processor.
    config.pseudo_label.dilations, config.pseudo_label.iterations = (1, 2), 2
    config.eval.canvases, config.eval.batch_size = ((32, 48),), 2
    config.eval.stages = ("cam", "par")
    config.eval.background = {"cam": 0.4, "affinity": 0.2, "par": 0.3}
    config.train.crop_size = 32
    return config


@pytest.fixture(scope="session")
def network(build):
    """Returns a configuration and parameters with positive and negative logits."""
    config = make_config()
    _, params = nnx.split(build(lambda: build_module.build_model(config, seed=0)))
    return config, params


@pytest.fixture(scope="session")
def model_folder(network, tmp_path_factory):
    """Returns the folder of the exported network."""
    folder = tmp_path_factory.mktemp("model")
    weights.write_model(folder, *network, step=7)
    write_sums(folder, weights.FILES)
    return folder


@pytest.fixture(scope="session")
def noise():
    """Returns a function (height, width, seed=0) -> uint8 [height, width, 3]."""
    return lambda height, width, seed=0: (
        np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    )
