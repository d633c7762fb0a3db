"""The backbone: shapes and counts by formula, and a whole small one against NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rml_jax.models import BACKBONES, MiTConfig, MixTransformer, mit
from tests.platforms import as_on
from tests.references.networks import SMALL_BACKBONE

TINY = MiTConfig(
    embed_dims=(4, 8, 12, 16),
    depths=(1, 1, 1, 3),
    num_heads=(1, 2, 3, 4),
    sr_ratios=(4, 2, 2, 1),
    strides=(2, 2, 1, 1),
    drop_path_rate=0.5,
)
IMAGE = (16, 22)


def shapes_only(config):
    return nnx.eval_shape(lambda: MixTransformer(config, rngs=nnx.Rngs(0)))


def output_shapes(config, *image_shape):
    graph, state = nnx.split(shapes_only(config))
    image = jax.ShapeDtypeStruct(image_shape, jnp.float32)
    return jax.eval_shape(lambda state, image: nnx.merge(graph, state)(image), state, image)


# --- Configuration and shapes ---

TABLE = {
    "b0": ((32, 64, 160, 256), (2, 2, 2, 2)),
    "b1": ((64, 128, 320, 512), (2, 2, 2, 2)),
    "b2": ((64, 128, 320, 512), (3, 4, 6, 3)),
    "b3": ((64, 128, 320, 512), (3, 4, 18, 3)),
    "b4": ((64, 128, 320, 512), (3, 8, 27, 3)),
    "b5": ((64, 128, 320, 512), (3, 6, 40, 3)),
}


@pytest.mark.parametrize("name", TABLE)
def test_variants_are_the_papers(name):
    config = BACKBONES[name]()
    assert (config.embed_dims, config.depths) == TABLE[name]
    assert config.num_heads == (1, 2, 5, 8)
    assert config.sr_ratios == (8, 4, 2, 1)
    assert config.strides == (4, 2, 2, 1), "stage 4 stays at 1/16"
    assert config.patch_sizes == (7, 3, 3, 3)
    assert (config.mlp_ratio, config.drop_path_rate) == (4, 0.1)
    assert config.stride == 16


def test_registered_backbones_take_changes():
    assert BACKBONES["b1"](drop_path_rate=0.3).drop_path_rate == 0.3
    assert BACKBONES["b1"](drop_path_rate=0.3).embed_dims == TABLE["b1"][0]


@pytest.mark.parametrize("changes", [{"depths": (2, 2, 2, 1)}, {"sr_ratios": (8, 4, 2, 2)}])
def test_stage_4_must_yield_two_square_attention_maps(changes):
    with pytest.raises(ValueError, match="last two blocks in stage 4"):
        BACKBONES["b1"](**changes)


@pytest.mark.parametrize("size", [(64, 64), (50, 70), (320, 320)])
@pytest.mark.parametrize("name", ["mini", "b0"])
def test_output_shapes(name, size):
    config = BACKBONES[name]()
    features, attention = output_shapes(config, 2, *size, 3)
    assert config.num_attention_maps == attention.shape[1]
    height, width = size
    for i, kernel in enumerate((7, 3, 3, 3)):
        height, width = (
            math.floor((side + 2 * (kernel // 2) - kernel) / config.strides[i]) + 1
            for side in (height, width)
        )
        assert features[i].shape == (2, height, width, config.embed_dims[i])
    heads = {"mini": 4, "b0": 8}[name]
    assert attention.shape == (2, 2 * heads, height * width, height * width)
    if size == (320, 320) and name == "b0":
        assert (height, width) == (20, 20)


def count_by_formula(channels, depths):
    total, before = 0, 3
    for i, (c, depth) in enumerate(zip(channels, depths, strict=True)):
        kernel, reduction = (7, 3, 3, 3)[i], (8, 4, 2, 1)[i]
        norm, dense = 2 * c, c * c + c
        reduce = reduction**2 * c * c + c + norm if reduction > 1 else 0
        attention = 4 * dense + reduce
        ffn = (c * 4 * c + 4 * c) + (9 * 4 * c + 4 * c) + (4 * c * c + c)
        total += kernel**2 * before * c + c + norm
        total += depth * (norm + attention + norm + ffn)
        total += norm
        before = c
    return total


@pytest.mark.parametrize("name", ["b0", "b1"])
def test_number_of_parameters(name):
    parameters = jax.tree.leaves(nnx.state(shapes_only(BACKBONES[name]()), nnx.Param))
    assert sum(math.prod(leaf.shape) for leaf in parameters) == count_by_formula(*TABLE[name])


# Millions of parameters of the encoders, as the SegFormer paper prints them.
@pytest.mark.parametrize(
    ("name", "millions"), [("b1", 13.1), ("b2", 24.2), ("b3", 44.0), ("b4", 60.8), ("b5", 81.4)]
)
def test_variants_have_the_published_size(name, millions):
    config = BACKBONES[name]()
    assert count_by_formula(config.embed_dims, config.depths) / 1e6 == pytest.approx(millions, abs=0.1)


def test_layer_norms_have_the_originals_epsilons():
    norms = {
        ".".join(map(str, path)): module.epsilon
        for path, module in nnx.iter_graph(shapes_only(BACKBONES["b0"]()))
        if isinstance(module, nnx.LayerNorm)
    }
    # 4 embeddings, 4 stage ends, 8 blocks of two, 6 of them with a reduction.
    assert len(norms) == 4 + 4 + 16 + 6
    for name, epsilon in norms.items():
        expected = 1e-5 if name.endswith(("embedding_norm", "reduce_norm")) else 1e-6
        assert epsilon == expected, name


@pytest.mark.parametrize("mean", [100.0, -3000.0])
def test_layer_norms_are_right_around_large_means(build, mean):
    """By E[x^2] - E[x]^2, flax's default, the variance of these is lost in float32."""
    network = build(lambda: SMALL_BACKBONE.build(rngs=nnx.Rngs(0)))
    norms = [module for _, module in nnx.iter_graph(network) if isinstance(module, nnx.LayerNorm)]
    assert len(norms) == 4 + 4 + 2 * 5 + 2
    for norm in norms:
        x = np.random.default_rng(0).normal(mean, 0.1, (7, norm.num_features)).astype(np.float32)
        exact = x.astype(np.float64)
        deviation = np.sqrt(exact.var(axis=1, keepdims=True) + norm.epsilon)
        expected = (exact - exact.mean(axis=1, keepdims=True)) / deviation
        expected = expected * np.asarray(norm.scale[...]) + np.asarray(norm.bias[...])
        # The mean itself is rounded to float32.
        np.testing.assert_allclose(norm(x), expected, atol=1e-5 * abs(mean))


# --- Depthwise convolution ---


def grouped_convolution(x, kernel):
    """XLA's own depthwise convolution."""
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def value_and_gradients(convolve):
    """The function (x, kernel, cotangent) -> (value, x's gradient, kernel's gradient)."""

    def both(x, kernel, cotangent):
        value, pull_back = jax.vjp(convolve, x, kernel)
        return value, *pull_back(cotangent)

    return both


def normal_arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


@pytest.mark.parametrize("platforms", [("cpu",), ("tpu",), ("cuda",), ("cpu", "cuda", "tpu")], ids="+".join)
@pytest.mark.parametrize("vmapped", [False, True], ids=["plain", "vmap"])
def test_depthwise_convolution_and_its_gradients_equal_the_grouped_one(platforms, vmapped):
    x, kernel, cotangent = normal_arrays((4, 2, 5, 6, 3), (3, 3, 3), (4, 2, 5, 6, 3))
    ours, theirs = map(value_and_gradients, (mit.depthwise_conv3x3, grouped_convolution))
    if vmapped:
        ours, theirs = (jax.vmap(function, (0, None, 0)) for function in (ours, theirs))
    else:
        x, cotangent = x[0], cotangent[0]
    found, expected = as_on(platforms, ours)(x, kernel, cotangent), jax.jit(theirs)(x, kernel, cotangent)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_the_depthwise_kernels_gradient_sums_in_float32(platform):
    """2000 pixels of 1 times 1 + 2**-7: a sum in bfloat16 stops at 256."""
    x = jnp.ones((1, 40, 50, 1), jnp.bfloat16)
    kernel, cotangent = jnp.zeros((3, 3, 1), jnp.bfloat16), jnp.full_like(x, 1 + 2**-7)
    gradients = as_on((platform,), value_and_gradients(mit.depthwise_conv3x3))(x, kernel, cotangent)
    expected = 2000 * (1 + 2**-7)  # of the centre; the result is rounded to bfloat16
    assert float(gradients[2][1, 1, 0]) == pytest.approx(expected, rel=2**-8)


def test_depthwise_convolution_of_one_pixel():
    result = mit.depthwise_conv3x3(jnp.asarray([[[[2.0]]]]), jnp.arange(9.0).reshape(3, 3, 1))
    assert result.tolist() == [[[[8.0]]]]


# --- A whole small backbone against NumPy ---


def layer_norm(x, norm, epsilon):
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)
    return scaled * np.asarray(norm.scale[...]) + np.asarray(norm.bias[...])


def dense(x, layer):
    return x @ np.asarray(layer.kernel[...], float) + np.asarray(layer.bias[...], float)


def convolve(x, layer, stride, padding):
    """[H, W, C]; the layer's kernel is [k, k, C, C']."""
    kernel, bias = np.asarray(layer.kernel[...], float), np.asarray(layer.bias[...], float)
    size = kernel.shape[0]
    x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
    rows, columns = ((side - size) // stride + 1 for side in x.shape[:2])
    out = np.zeros((rows, columns, kernel.shape[3]))
    for i in range(rows):
        for j in range(columns):
            window = x[i * stride : i * stride + size, j * stride : j * stride + size]
            out[i, j] = np.einsum("ijc,ijcd->d", window, kernel) + bias
    return out


def attend(x, layer, reduction, heads):
    """[H, W, C] -> [H, W, C] and the logits [heads, H W, keys]."""
    height, width, channels = x.shape
    source = x
    if reduction > 1:
        source = layer_norm(convolve(x, layer.reduce, reduction, 0), layer.reduce_norm, 1e-5)
    query, key, value = (
        dense(of.reshape(-1, channels), part)
        for of, part in ((x, layer.query), (source, layer.key), (source, layer.value))
    )
    size = channels // heads
    mixed, logits = np.zeros((height * width, channels)), []
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        scores = query[:, own] @ key[:, own].T / math.sqrt(size)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        mixed[:, own] = weights / weights.sum(axis=1, keepdims=True) @ value[:, own]
        logits.append(scores)
    return dense(mixed, layer.projection).reshape(x.shape), np.stack(logits)


def feed_forward(x, layer):
    x = dense(x, layer.expand)
    kernel, bias = (
        np.asarray(layer.depthwise.kernel[...], float),
        np.asarray(layer.depthwise.bias[...], float),
    )
    height, width, _ = x.shape
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    mixed = np.zeros(x.shape)
    for i in range(height):
        for j in range(width):
            mixed[i, j] = (padded[i : i + 3, j : j + 3] * kernel).sum(axis=(0, 1)) + bias
    gelu = mixed / 2 * (1 + np.vectorize(math.erf)(mixed / math.sqrt(2)))
    return dense(gelu, layer.contract)


def reference(model, config, image):
    """One image [H, W, 3] -> the features of the stages, and the logits of all blocks."""
    x, features, logits = image.astype(float), [], []
    for i, stage in enumerate(model.stages):
        x = convolve(x, stage.embedding, config.strides[i], config.patch_sizes[i] // 2)
        x = layer_norm(x, stage.embedding_norm, 1e-5)
        for block in stage.blocks:
            branch, scores = attend(
                layer_norm(x, block.attention_norm, 1e-6),
                block.attention,
                config.sr_ratios[i],
                config.num_heads[i],
            )
            logits.append(scores)
            x = x + branch
            x = x + feed_forward(layer_norm(x, block.ffn_norm, 1e-6), block.ffn)
        x = layer_norm(x, stage.norm, 1e-6)
        features.append(x)
    return features, logits


@pytest.fixture(scope="module")
def tiny(build):
    return build(lambda: MixTransformer(TINY, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(2, *IMAGE, 3)).astype(np.float32)


@nnx.jit
def run(model, images, key=None):
    return model(images, key)


@pytest.fixture(scope="module")
def outputs(tiny, images):
    return run(tiny, jnp.asarray(images))


def test_backbone_equals_numpy(tiny, images, outputs):
    features, attention = outputs
    for b in range(2):
        expected, logits = reference(tiny, TINY, images[b])
        for ours, theirs in zip(features, expected, strict=True):
            np.testing.assert_allclose(ours[b], theirs, atol=2e-4)
        np.testing.assert_allclose(attention[b], np.concatenate(logits[-2:]), atol=2e-4)


def test_attention_with_reduction_equals_numpy(tiny):
    layer = tiny.stages[1].blocks[0].attention
    x = np.random.default_rng(2).normal(size=(1, 5, 6, 8)).astype(np.float32)
    output, logits = nnx.jit(lambda layer, x: layer(x))(layer, jnp.asarray(x))
    expected, expected_logits = attend(x[0].astype(float), layer, 2, 2)
    np.testing.assert_allclose(output[0], expected, atol=1e-4)
    np.testing.assert_allclose(logits[0], expected_logits, atol=1e-4)
    assert logits.shape == (1, 2, 30, 6)


# --- Stochastic depth ---


def test_blank_patches_have_gradients_like_others():
    # LayerNorm's slope is 1 / sqrt(epsilon) at a vector of zeros, which a blank patch gives where the bias is 0.
    stage = mit.Stage(TINY, 0, 3, (0.0,), dtype=jnp.float32, rngs=nnx.Rngs(0))
    image = np.random.default_rng(0).normal(size=(1, 16, 16, 3)).astype(np.float32)
    half_blank = image.copy()
    half_blank[:, :, 8:] = 0
    weight = np.random.default_rng(1).normal(size=(1, 8, 8, 4))

    graph, params = nnx.split(stage)

    @jax.jit
    def norm(params, image):
        gradients = jax.grad(lambda p: jnp.sum(nnx.merge(graph, p)(image, [None])[0] * weight))(params)
        return optax.tree.norm(gradients)

    assert norm(params, half_blank) < 10 * norm(params, image)
    params["embedding"]["bias"][...] = jnp.zeros(4)
    assert norm(params, half_blank) > 1000 * norm(params, image)


def test_drop_path_without_key_or_rate_changes_nothing():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)), jnp.float32)
    np.testing.assert_array_equal(mit.drop_path(x, 0.5, None), x)
    np.testing.assert_array_equal(mit.drop_path(x, 0.0, jax.random.key(0)), x)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    x = jnp.ones((4000, 2, 3), jnp.bfloat16)
    result = mit.drop_path(x, 0.25, jax.random.key(0))
    assert result.dtype == jnp.bfloat16
    result = np.asarray(result, np.float32)
    kept = result[:, 0, 0] > 0
    np.testing.assert_array_equal(result[~kept], np.zeros((sum(~kept), 2, 3)))
    np.testing.assert_allclose(result[kept], np.full((sum(kept), 2, 3), 4 / 3), rtol=0.01)
    assert kept.mean() == pytest.approx(0.75, abs=0.03)
    assert result.mean() == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize("name", ["b0", "b2"])
def test_drop_rates_rise_linearly_over_all_blocks(name):
    rates = [
        block.drop_path_rate for stage in shapes_only(BACKBONES[name]()).stages for block in stage.blocks
    ]
    np.testing.assert_allclose(rates, np.linspace(0, 0.1, sum(TABLE[name][1])), atol=1e-9)


def test_every_residual_branch_draws_for_itself_at_its_blocks_rate(tiny, monkeypatch):
    samples, keys = 4, 4000
    kept = []

    def spy(x, rate, key):
        kept.append(drop_path(jnp.ones((samples, 1)), rate, key)[:, 0] > 0)
        return x

    drop_path = mit.drop_path
    monkeypatch.setattr(mit, "drop_path", spy)

    @jax.jit
    @jax.vmap
    def draws(key):
        kept.clear()
        tiny(jnp.zeros((samples, *IMAGE, 3)), key)
        return jnp.stack(kept)

    drawn = np.asarray(draws(jax.random.split(jax.random.key(0), keys)))
    # Two branches to each of the six blocks, whose rates rise from 0 to 0.5.
    rates = np.repeat([0, 0.1, 0.2, 0.3, 0.4, 0.5], 2)
    assert drawn.shape == (keys, len(rates), samples)
    # A share of 16,000 draws is within 0.004 of its rate (one deviation), a correlation of 4,000 within 0.016 of 0.
    np.testing.assert_allclose(1 - drawn.mean(axis=(0, 2)), rates, atol=0.016)
    assert drawn[:, :2].all()
    correlation = np.corrcoef(drawn[:, 2:].reshape(keys, -1).T)
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.08


def test_key_makes_training_random(tiny, images, outputs):
    first, again, other = (
        np.asarray(run(tiny, jnp.asarray(images), jax.random.key(k))[0][-1]) for k in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    for noisy in (first, other):
        assert np.abs(noisy - outputs[0][-1]).max() > 1e-2
    assert np.abs(first - other).max() > 1e-2


# --- Types ---


def test_bfloat16_activations_keep_parameters_and_logits_in_float32(build, images, outputs):
    model = build(lambda: MixTransformer(TINY, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))} == {jnp.dtype(jnp.float32)}
    features, attention = run(model, jnp.asarray(images))
    assert {feature.dtype for feature in features} == {jnp.dtype(jnp.bfloat16)}
    assert attention.dtype == jnp.float32
    assert len(np.unique(np.asarray(attention).astype(jnp.bfloat16))) < len(np.unique(attention)), (
        "not rounded"
    )
    for ours, exact in zip([*features, attention], [*outputs[0], outputs[1]], strict=True):
        error = np.asarray(ours, np.float32) - np.asarray(exact)
        assert 0 < np.sqrt((error**2).mean()) < 0.05 * np.asarray(exact).std()
