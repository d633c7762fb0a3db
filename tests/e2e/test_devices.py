"""Results do not depend on the number of devices or processes."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh

from benchmarks import measure
from rml_jax.models import RML, RMLConfig
from rml_jax.training import sharding
from rml_jax.training.optimizer import OptimizerConfig, make_optimizer
from rml_jax.training.step import make_train_step
from tests.e2e import devices
from tests.references.networks import SMALL_BACKBONE, random_network
from tests.training.settings import CONFIG

BATCH, SIZE, CLASSES = 8, 16, 3
OPTIMIZER = OptimizerConfig(1e-3, 1e-3, weight_decay=0.1, warmup_steps=1, total_steps=20, freeze_norms=False)


def train_small_network(count, shard_optimizer, config=CONFIG, mutual=True):
    """Runs five steps on `count` of this process's devices. Returns metrics and final state."""
    mesh = Mesh(np.array(jax.devices()[:count]), ("data",), axis_types=(AxisType.Auto,))
    network = RMLConfig(SMALL_BACKBONE, CLASSES, context_channels=4)
    graphdef, params = nnx.split(random_network(lambda: RML(network, rngs=nnx.Rngs(0))))
    optimizer = make_optimizer(OPTIMIZER, params)
    state = sharding.initial_state(params, optimizer, 0, mesh, shard_optimizer)
    step = sharding.jit_train_step(make_train_step(graphdef, optimizer, config), state)
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(5):
        batch = {
            "image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3)).astype(np.uint8),
            "box": np.tile(np.int32([[0, 0, SIZE, SIZE]]), (BATCH, 1)),
            "tags": rng.integers(0, 2, (BATCH, CLASSES)).astype(np.float32),
        }
        state, metrics = step(state, sharding.shard(batch, mesh), mutual=mutual)
        seen.append({name: float(value) for name, value in metrics.items()})
    return seen, state


def compare():
    """Prints as JSON the metrics of the same steps on one and on eight of this process's devices."""
    alone, _ = train_small_network(1, shard_optimizer=False)
    together, state = train_small_network(8, shard_optimizer=True)
    leaves = jax.tree.leaves(state.optimizer)
    share = sum(leaf.addressable_data(0).size for leaf in leaves) / sum(leaf.size for leaf in leaves)
    print(json.dumps({"alone": alone, "together": together, "share": share}))


@pytest.mark.slow  # compiles two programs with all losses
def test_one_and_eight_devices_with_a_sharded_optimizer_give_the_same_losses():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    found = measure.call_in_new_process("tests.e2e.test_devices", "compare", **flags)
    for one, eight in zip(found["alone"], found["together"], strict=True):
        for name in ("loss", "classification", "ciml", "mfml", "apml", "gradient_norm"):
            assert eight[name] == pytest.approx(one[name], abs=1e-5), name
    # An eighth of most arrays; some arrays of such a small network have no axis that is divisible by eight.
    assert 1 / 8 <= found["share"] < 0.4


def compare_joined():
    """Prints as JSON the metrics of five steps with joined images on one and on eight of this process's devices."""
    config = dataclasses.replace(CONFIG, join=0.5)
    alone, together = (train_small_network(count, False, config, mutual=False)[0] for count in (1, 8))
    print(json.dumps({"alone": alone, "together": together}))


@pytest.mark.slow  # a process of its own
def test_images_are_joined_across_devices():
    """On eight devices each image's partner is on another one."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    found = measure.call_in_new_process("tests.e2e.test_devices", "compare_joined", **flags)
    assert len(found["alone"]) == 5
    for one, eight in zip(found["alone"], found["together"], strict=True):
        assert eight == pytest.approx(one, rel=1e-4, abs=1e-5)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Returns the losses on one device."""
    losses, _ = devices.train(devices.REFERENCE, tmp_path_factory.mktemp("one") / "run", steps=5, warm_up=2)
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("layout", [name for name in devices.LAYOUTS if name != devices.REFERENCE])
def test_layouts_of_devices_by_the_real_command_give_the_same_losses(tmp_path, layout, reference):
    found, _ = devices.train(layout, tmp_path / "run", steps=5, warm_up=2)
    assert found.keys() == reference.keys() == {1, 2, 3, 4, 5}
    assert devices.difference(found, reference) < 1e-5
