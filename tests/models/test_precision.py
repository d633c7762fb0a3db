"""Mixed precision: which operations it rounds, and where a configuration turns it on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rml_jax.config import default_config
from rml_jax.models import build as build_module
from rml_jax.models.mit import PatchConv, extract_patches
from rml_jax.ops.cam import class_activation_maps
from rml_jax.utils import processor
from rml_jax.utils.errors import UserError
from rml_jax.validate import check_config


def make_config(**model):
    config = default_config()
    config.data.class_names = ("ant", "bee", "cow")
    config.model.variant = "mini"
    config.model.update(model)
    return config


@pytest.mark.parametrize(
    ("size", "stride", "padding", "channels"), [(7, 4, 3, 3), (3, 2, 1, 8), (3, 1, 1, 8), (4, 4, 0, 8)]
)
def test_patches_times_kernel_is_the_convolution(size, stride, padding, channels):
    rng = np.random.default_rng(size)
    images = rng.standard_normal((2, 21, 30, channels)).astype(np.float32)
    kernel = rng.standard_normal((size, size, channels, 5)).astype(np.float32)
    expected = jax.lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        ((padding, padding),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    patches = extract_patches(jnp.asarray(images), size, stride, padding)
    np.testing.assert_allclose(patches @ kernel.reshape(-1, 5), expected, atol=1e-4)


def test_mixed_network_is_near_the_float32_network(build):
    """Logits and CAMs differ by bfloat16's rounding (2**-9 per operand), and outputs stay float32."""
    images = np.random.default_rng(0).standard_normal((2, 40, 48, 3)).astype(np.float32)
    exact, mixed = (
        build(lambda dtype=dtype: build_module.build_model(make_config(dtype=dtype), seed=0))
        for dtype in ("float32", "mixed")
    )
    forward = nnx.jit(lambda model: model(images))
    ours, reference = forward(mixed), forward(exact)
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {jnp.dtype("float32")}
    difference = class_activation_maps(ours.cam_logits) - class_activation_maps(reference.cam_logits)
    assert 0 < np.abs(difference).max() < 0.05
    spread = np.abs(reference.logits).max()
    assert 0 < np.abs(ours.logits - reference.logits).max() < 0.02 * spread


def test_parameters_are_those_of_the_float32_network():
    (_, exact), (_, mixed) = (
        build_module.build_graph(make_config(dtype=dtype)) for dtype in ("float32", "mixed")
    )
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), exact) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), mixed
    )


def test_every_strided_convolution_is_rounded():
    model = nnx.eval_shape(lambda: build_module.build_model(make_config(dtype="mixed"), seed=0))
    convolutions = [module for _, module in nnx.iter_graph(model) if isinstance(module, nnx.Conv)]
    assert convolutions
    assert all(isinstance(module, PatchConv) and module.mixed_precision for module in convolutions)


@pytest.mark.parametrize(
    ("dtype", "cams", "has_instructions", "expected"),
    [
        ("float32", "auto", True, True),
        ("float32", "auto", False, False),
        ("float32", "model", True, False),
        ("float32", "mixed", False, True),
        ("mixed", "auto", True, False),
        ("bfloat16", "auto", True, False),
    ],
)
def test_cams_are_mixed_where_it_is_fast(monkeypatch, dtype, cams, has_instructions, expected):
    monkeypatch.setattr(build_module, "multiplies_bfloat16", lambda: has_instructions)
    config = make_config(dtype=dtype)
    config.cam.dtype = cams
    assert build_module.has_mixed_cams(config) is expected


def test_mixed_cams_of_a_bfloat16_model_are_refused():
    config = make_config(dtype="bfloat16")
    config.cam.dtype, config.data.source = "mixed", "digits"
    config.data.class_names = tuple("0123456789")
    with pytest.raises(UserError, match=r"cam\.dtype .*'mixed'.*auto or model"):
        check_config(config)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu amx_bf16", True), ("fpu avx512_bf16 sse", True), ("fpu avx512f amx_int8", False), ("", False)],
)
def test_instructions_are_read_from_the_processor(monkeypatch, flags, expected):
    monkeypatch.setattr(processor, "features", lambda: tuple(flags.split()))
    assert processor.multiplies_bfloat16() is expected


def test_compiler_options_are_for_cpus_and_give_way_to_flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    assert processor.inference_options("cpu")
    assert processor.inference_options("tpu") is None
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_DOT")
    assert processor.inference_options("cpu") is None
