"""Results do not depend on how many devices there are, nor on how many processes they belong to."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh

from rml_jax.models import RML, RMLConfig
from rml_jax.training import sharding
from rml_jax.training.optimizer import OptimizerConfig, make_optimizer
from rml_jax.training.step import make_train_step
from rml_jax.utils.errors import UserError
from tests.e2e import devices
from tests.references.networks import SMALL_BACKBONE, random_network
from tests.training.settings import CONFIG

BATCH, SIZE, CLASSES = 8, 16, 3
OPTIMIZER = OptimizerConfig(1e-3, 1e-3, weight_decay=0.1, warmup_steps=1, total_steps=20, freeze_norms=False)


def train_small_network(count, shard_optimizer):
    """Five steps with all losses on so many of this process's devices: the metrics, and the final state."""
    mesh = Mesh(np.array(jax.devices()[:count]), ("data",), axis_types=(AxisType.Auto,))
    config = RMLConfig(SMALL_BACKBONE, CLASSES, context_channels=4)
    graphdef, params = nnx.split(random_network(lambda: RML(config, rngs=nnx.Rngs(0))))
    optimizer = make_optimizer(OPTIMIZER, params)
    state = sharding.initial_state(params, optimizer, 0, mesh, shard_optimizer)
    step = sharding.jit_train_step(make_train_step(graphdef, optimizer, CONFIG), state)
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(5):
        batch = {
            "image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3)).astype(np.uint8),
            "box": np.tile(np.int32([[0, 0, SIZE, SIZE]]), (BATCH, 1)),
            "tags": rng.integers(0, 2, (BATCH, CLASSES)).astype(np.float32),
        }
        state, metrics = step(state, sharding.shard(batch, mesh), mutual=True)
        seen.append({name: float(value) for name, value in metrics.items()})
    return seen, state


def main():
    """Prints as JSON what one and eight of this process's devices make of the same steps."""
    alone, _ = train_small_network(1, shard_optimizer=False)
    together, state = train_small_network(8, shard_optimizer=True)
    held = sum(leaf.addressable_data(0).size for leaf in jax.tree.leaves(state.optimizer))
    print(
        json.dumps(
            {
                "alone": alone,
                "together": together,
                "programs": len({str(leaf.sharding) for leaf in jax.tree.leaves(state.params)}),
                "share": held / sum(leaf.size for leaf in jax.tree.leaves(state.optimizer)),
            }
        )
    )


@pytest.mark.slow  # compiles two programs with all losses
def test_one_and_eight_devices_with_a_sharded_optimizer_give_the_same_losses():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.test_devices"],
        cwd=Path(__file__).parents[2],
        env=os.environ | flags,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for one, eight in zip(found["alone"], found["together"], strict=True):
        for name in ("loss", "classification", "ciml", "mfml", "apml", "gradient_norm"):
            assert eight[name] == pytest.approx(one[name], abs=1e-5), name
    # An eighth of most arrays; some of so small a network have no axis that eight devices can share.
    assert 1 / 8 <= found["share"] < 0.4


@pytest.mark.slow
@pytest.mark.parametrize("layout", [name for name in devices.LAYOUTS if name != devices.REFERENCE])
def test_layouts_of_devices_by_the_real_command_give_the_same_losses(tmp_path, layout):
    reference, _ = devices.train(devices.REFERENCE, tmp_path / "reference", steps=5, warm_up=2)
    found, _ = devices.train(layout, tmp_path / "run", steps=5, warm_up=2)
    assert found.keys() == {1, 2, 3, 4, 5}
    assert devices.difference(found, reference) < 1e-5


@pytest.mark.slow  # 25 s of tracing
def test_step_lowers_for_tpu_and_cuda():
    config = RMLConfig(SMALL_BACKBONE, CLASSES, context_channels=4)
    graphdef, params = nnx.split(random_network(lambda: RML(config, rngs=nnx.Rngs(0))))
    optimizer = optax.sgd(0.1)
    pure = make_train_step(graphdef, optimizer, CONFIG)
    state = jax.eval_shape(
        lambda params: sharding.TrainState(
            jax.numpy.int32(0), params, optimizer.init(params), jax.random.key(0)
        ),
        params,
    )
    batch = {
        "image": jax.ShapeDtypeStruct((2, SIZE, SIZE, 3), np.uint8),
        "box": jax.ShapeDtypeStruct((2, 4), np.int32),
        "tags": jax.ShapeDtypeStruct((2, CLASSES), np.float32),
    }
    step = jax.jit(lambda state, batch: pure(state, batch, mutual=True))
    exported = jax.export.export(step, platforms=("cuda", "tpu"))(state, batch)
    assert exported.platforms == ("cuda", "tpu")
    # A call back to Python could not be moved to such a machine.
    assert "callback" not in exported.mlir_module()


def test_parts_that_devices_cannot_share_are_refused():
    with pytest.raises(
        UserError, match=r"batch_size is 6: .* the 1 devices times config\.train\.accumulate = 4"
    ):
        sharding.make_mesh(6, grad_accum_steps=4)


if __name__ == "__main__":
    main()
