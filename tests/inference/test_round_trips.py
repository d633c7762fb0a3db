"""Networks of unusual depth and images of unusual sizes: every format gives back the network that was saved."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
from flax import nnx
from transformers import SegformerModel

from rml_jax.checkpoint import Checkpoints, read_params
from rml_jax.inference.export import stablehlo
from rml_jax.inference.export.checksums import write_sums
from rml_jax.inference.export.program import make_program
from rml_jax.inference.predictor import predictor_of
from rml_jax.models import BACKBONES, MiTConfig
from rml_jax.models import build as build_module
from rml_jax.models.weights import load_weights, save_transformers, save_weights
from rml_jax.stages.canvas import smallest_side
from rml_jax.training.step import TrainState
from rml_jax.utils.errors import UserError
from rml_jax.utils.trees import named_leaves, with_leaves
from tests.conftest import make_config

# Sorted as strings, block 10 comes before block 2: orbax returns lists in this order if it isn't told the structure.
DEEP = MiTConfig((4, 4, 8, 8), (1, 1, 12, 2), (1, 1, 2, 2), (2, 2, 1, 1), strides=(2, 2, 1, 1), mlp_ratio=2)
FLAT = MiTConfig((4, 4, 8, 8), (1, 1, 1, 2), (1, 1, 2, 2), (1, 1, 1, 1), strides=(2, 2, 1, 1), mlp_ratio=2)
"""A backbone without spatial reduction takes images of a single pixel."""


@pytest.fixture(scope="module")
def networks(build):
    """Function of a backbone's name -> ConfigDict and parameters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "deep", lambda **_: DEEP)
        patch.setitem(BACKBONES, "flat", lambda **_: FLAT)

        def make(variant):
            config = make_config()
            config.model.variant, config.eval.canvases = variant, ((16, 24),)
            return config, nnx.split(build(lambda: build_module.build_model(config, seed=0)))[1]

        yield make


@pytest.fixture(scope="module")
def deep(networks):
    """Configuration, parameters, and a function from parameters to features."""
    config, params = networks("deep")
    graphdef, _ = build_module.build_graph(config)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16, 16, 3)), jnp.float32)

    @jax.jit
    def features(params):
        return nnx.merge(graphdef, params).backbone(images)

    return config, params, features


def zeros(params):
    return jax.tree.map(jnp.zeros_like, params)


def assert_same_features(deep, params):
    for found, expected in zip(*(jax.tree.leaves(deep[2](p)) for p in (params, deep[1])), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_the_order_of_twelve_blocks_shows_in_the_features(deep):
    """Else the tests below would see nothing."""
    _, params, features = deep
    order = sorted(range(12), key=str)
    leaves = named_leaves(params)
    start = "backbone/stages/2/blocks/"
    moved = {
        f"{start}{place}/{name.split('/', 5)[5]}": leaf
        for place, block in enumerate(order)
        for name, leaf in leaves.items()
        if name.startswith(f"{start}{block}/")
    }
    wrong = features(with_leaves(params, leaves | moved))
    assert np.abs(wrong[0][-1] - features(params)[0][-1]).max() > 0.1


@pytest.mark.slow
def test_twelve_blocks_in_a_checkpoint(deep, tmp_path):
    _, params, _ = deep
    state = TrainState(jnp.int32(1), params, {"mean": params}, jax.random.key(0))
    with contextlib.closing(Checkpoints(tmp_path, keep=1)) as checkpoints:
        checkpoints.save(state, {}, {}, {})
        checkpoints.wait()
        restored = checkpoints.restore(
            state._replace(params=zeros(params), optimizer={"mean": zeros(params)})
        ).state
    assert_same_features(deep, restored.params)
    assert_same_features(deep, restored.optimizer["mean"])
    assert_same_features(deep, read_params(tmp_path, zeros(params))[1])
    # Also where someone reads it without the network.
    raw = ocp.StandardCheckpointer().restore((tmp_path / "checkpoints" / "1" / "state").absolute())
    assert_same_features(deep, with_leaves(params, raw["params"]))


@pytest.mark.slow
def test_twelve_blocks_in_safetensors(deep, tmp_path):
    _, params, _ = deep
    save_weights(params, tmp_path / "model.safetensors")
    assert_same_features(deep, load_weights(zeros(params), tmp_path / "model.safetensors")[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "state_dict"])
def test_twelve_blocks_through_transformers(deep, tmp_path, kind):
    """The state_dict of a model in memory has other names than the files."""
    _, params, _ = deep
    save_transformers(params, DEEP, tmp_path / "ours")
    model = SegformerModel.from_pretrained(tmp_path / "ours", local_files_only=True)
    path = tmp_path / "theirs"
    if kind == "folder":
        model.save_pretrained(path)
    else:
        torch.save(model.state_dict(), path)
    loaded, report = load_weights(zeros(params), path)
    assert report.layout == {"folder": "transformers", "state_dict": "state_dict"}[kind]
    assert_same_features(deep, loaded)


@pytest.mark.slow
def test_twelve_blocks_in_stablehlo(deep, tmp_path, noise):
    config, params, _ = deep
    stablehlo.write_program(tmp_path, config, params, 1)
    write_sums(tmp_path, stablehlo.FILES)
    images = noise(16, 24)[None]
    found = stablehlo.read_program(tmp_path)(images)
    expected = jax.jit(make_program(config, params))(images)
    for name in ("logits", "cams"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)
    np.testing.assert_array_equal(found["mask"], expected["mask"])


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_program_agrees_with_the_live_model_at_the_least_sizes(networks, flat_program, noise, batch):
    """jax.export takes `shape[0] == 1` for False where the size is symbolic, whatever it is at run time."""
    config, _ = networks("flat")
    program, live = flat_program
    stride, (canvas,) = build_module.stride(config), config.eval.canvases
    smallest = smallest_side(build_module.backbone(config), config.cam.scales)
    assert (stride, smallest) == (4, 1)
    for height, width in (canvas, (stride, stride), (smallest, smallest), (stride + 1, smallest)):
        images = np.stack([noise(height, width, seed) for seed in range(batch)])
        found = program(images)
        for number, image in enumerate(images):
            everything = live(image, tags=live.classes)
            np.testing.assert_allclose(jax.nn.sigmoid(found["logits"][number]), everything.scores, atol=1e-5)
            np.testing.assert_allclose(found["cams"][number], everything.cams, atol=1e-4)
            np.testing.assert_array_equal(found["mask"][number], live(image).mask)


@pytest.fixture(scope="module")
def flat_program(networks, tmp_path_factory):
    config, params = networks("flat")
    folder = tmp_path_factory.mktemp("flat")
    stablehlo.write_program(folder, config, params, 1)
    write_sums(folder, stablehlo.FILES)
    return jax.jit(stablehlo.read_program(folder)), predictor_of(config, params, stage="cam")


def test_platforms_that_do_not_exist_are_refused(networks, tmp_path):
    """jax.export takes any name and writes a program that runs nowhere."""
    config, params = networks("flat")
    with pytest.raises(UserError, match=r"platform 'gpu': expected some of cpu, cuda, rocm, tpu"):
        stablehlo.write_program(tmp_path, config, params, 1, platforms=("cpu", "gpu"))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_last_of_254_classes_in_exported_and_predicted_masks(networks, build, noise):
    """Masks are uint8: 254 is a class, 255 is none."""
    config, _ = networks("flat")
    config.data.class_names, config.data.mask_values = tuple(map(str, range(254))), ()
    params = nnx.split(build(lambda: build_module.build_model(config, seed=0)))[1]
    images = noise(16, 24)[None]
    logits = jax.jit(make_program(config, params))(images)["logits"]
    kernel = params["classifier"]["kernel"]
    one = kernel[...][:, jnp.argmax(logits[0])]  # a class that is found in the image
    kernel[...] = jnp.zeros_like(kernel[...]).at[:, 253].set(one)
    mask = np.asarray(jax.jit(make_program(config, params))(images)["mask"])
    assert set(np.unique(mask).tolist()) == {0, 254}
    np.testing.assert_array_equal(predictor_of(config, params, stage="cam")(images[0]).mask, mask[0])
