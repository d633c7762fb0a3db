"""`model.padding`: what the backbone's convolutions see outside an image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rml_jax.models.mit import MiTConfig

SMALL = {
    "embed_dims": (4, 8, 8, 8),
    "depths": (1, 1, 1, 2),
    "num_heads": (1, 2, 2, 2),
    "sr_ratios": (4, 2, 1, 1),
    "strides": (2, 2, 1, 1),
}


@pytest.fixture(scope="module", params=["zeros", "edge"])
def padded(request):
    network = MiTConfig(**SMALL, padding=request.param).build(rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(network)
    return request.param, jax.jit(lambda images, sizes: nnx.merge(graphdef, params)(images, sizes=sizes)[0])


def test_a_constant_image_has_constant_features_up_to_the_border_with_edges_only(padded):
    padding, run = padded
    colour = np.array([0.7, -1.1, 0.3], np.float32)
    features = run(np.broadcast_to(colour, (1, 32, 48, 3)), None)
    assert len(features) == 4
    for stage in features:
        spread = np.ptp(stage, axis=(1, 2)).max()
        assert spread < 1e-4 if padding == "edge" else spread > 1e-2


def test_an_image_on_a_larger_canvas_has_the_features_that_it_has_alone(padded):
    _, run = padded
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, 21, 30, 3)).astype(np.float32)
    canvas = rng.normal(size=(1, 32, 48, 3)).astype(np.float32) * 100
    canvas[:, :21, :30] = image
    alone, placed = run(image, None), run(canvas, jnp.array([[21, 30]]))
    for expected, found in zip(alone, placed, strict=True):
        height, width = expected.shape[1:3]
        np.testing.assert_allclose(found[:, :height, :width], expected, atol=2e-5)


def test_unknown_padding_is_refused():
    with pytest.raises(ValueError, match="unknown padding 'reflect': expected one of zeros, edge"):
        MiTConfig(**SMALL, padding="reflect")
