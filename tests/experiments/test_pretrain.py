"""Pre-training by classification: it learns, and what it writes is what `model.init_from` takes."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from PIL import Image

from configs import pretrain as pretrain_config
from experiments import pretrain
from rml_jax.data.sources import with_class_names
from rml_jax.models import build
from rml_jax.models.weights import load_weights
from rml_jax.ops import normalize
from rml_jax.training.optimizer import make_optimizer, optimizer_config
from rml_jax.training.sharding import init_model, initial_state, make_mesh, shard
from rml_jax.validate import check_config


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Two classes, dark and bright images, on a small network."""
    root = tmp_path_factory.mktemp("photos")
    for name, brightness in (("dark", 40), ("bright", 210)):
        (root / name).mkdir()
        for number in range(6):
            noise = np.random.default_rng(number).integers(-40, 41, (16, 16, 3))
            Image.fromarray((brightness + noise).astype(np.uint8)).save(root / name / f"{number}.png")
    config = pretrain_config.get_config()
    config.data.root = str(root)
    config.data.val_fraction = 0.34
    config.model.variant = "mini"
    config.train.crop_size = 32
    config.train.batch_size = 4
    config.train.steps = 12
    config.optimizer.warmup_steps = 2
    config.log.every = 3
    config = with_class_names(config)
    check_config(config)
    return config


def start(config):
    mesh = make_mesh(config.train.batch_size)
    graphdef, params = init_model(lambda: build.build_model(config, 0), mesh)
    optimizer = make_optimizer(optimizer_config(config), params)
    return mesh, graphdef, optimizer, initial_state(params, optimizer, 0, mesh)


def test_it_learns_and_its_weights_start_another_network(config, tmp_path):
    mesh, graphdef, optimizer, state = start(config)
    state, losses = pretrain.train(config, mesh, graphdef, optimizer, state, tmp_path / "out.safetensors")
    assert list(losses) == [3, 6, 9, 12]
    assert losses[12] < 0.5 * losses[3]
    found = pretrain.accuracy(config, graphdef, state.params)
    assert found == {"images": found["images"], "top1": 1.0}
    assert found["images"] >= 2
    params, report = load_weights(state.params, tmp_path / "out.safetensors")
    assert not report.fresh
    jax.tree.map(np.testing.assert_array_equal, params, state.params)


def test_the_loss_is_softmax_cross_entropy(config):
    mesh, graphdef, _, state = start(config)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    tags = np.eye(2, dtype=np.float32)[[0, 1, 1, 0]]
    box = np.tile(np.array([0, 0, 32, 32], np.int32), (4, 1))
    logits = nnx.merge(graphdef, state.params)(normalize(images, box), None).logits
    expected = -np.mean(np.log(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))[tags == 1])
    batch = shard({"image": images, "tags": tags, "box": box}, mesh)
    _, loss = jax.jit(pretrain.make_step(graphdef, optax.sgd(0.0)))(
        state._replace(optimizer=optax.sgd(0.0).init(state.params)), batch
    )
    assert loss == pytest.approx(expected, rel=1e-4)
