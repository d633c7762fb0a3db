"""The step and its batches for other devices than this process's."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from rml_jax.models import RML, RMLConfig
from rml_jax.training import sharding
from rml_jax.training.step import make_train_step
from rml_jax.utils.errors import UserError
from tests.references.networks import SMALL_BACKBONE, random_network
from tests.training.settings import CONFIG

SIZE, CLASSES = 16, 3


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
        UserError, match=r"batch_size is 6: .* the 1 devices times config\.train\.grad_accum_steps = 4"
    ):
        sharding.make_mesh(6, grad_accum_steps=4)
