"""A small network as a run would leave it, for prediction and export."""

import numpy as np
import pytest
from flax import nnx

from rml_jax.config import default_config
from rml_jax.inference.export import weights
from rml_jax.inference.export.checksums import write_sums
from rml_jax.models import build as build_module

CLASSES = ("ant", "bee", "cow")


def make_config():
    config = default_config()
    config.data.name = "insects"
    config.data.source = "folder"
    config.data.class_names = CLASSES
    config.data.mask_values = (8, 12, 15)
    config.model.variant = "mini"
    config.cam.scales, config.cam.flip = (1.0,), False
    config.pseudo_label.dilations, config.pseudo_label.iterations = (1, 2), 2
    config.eval.canvases, config.eval.batch_size = ((32, 48),), 2
    config.eval.stages = ("cam", "par")
    config.eval.background = {"cam": 0.4, "affinity": 0.2, "par": 0.3}
    config.train.crop_size = 32
    return config


@pytest.fixture(scope="session")
def network(build):
    """Configuration and parameters whose logits lie on both sides of 0."""
    config = make_config()
    _, params = nnx.split(build(lambda: build_module.build_model(config, seed=0)))
    return config, params


@pytest.fixture(scope="session")
def model_folder(network, tmp_path_factory):
    """The network as an exported folder."""
    folder = tmp_path_factory.mktemp("model")
    weights.write_model(folder, *network, step=7)
    write_sums(folder, weights.FILES)
    return folder


@pytest.fixture(scope="session")
def noise():
    """Function (height, width, seed=0) -> uint8 [height, width, 3]."""
    return lambda height, width, seed=0: (
        np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    )
