"""Other people's names and shapes: real transformers models, and the original written out and run in PyTorch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file
from torch.nn import functional
from transformers import (
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerModel,
)

from rml_jax.models import RML, MiTConfig, RMLConfig, layouts
from rml_jax.utils.trees import named_leaves, with_leaves

# No two stages alike in width, depth or reduction, so that a wrong number in a name shows.
BACKBONE = MiTConfig(
    embed_dims=(4, 8, 12, 16),
    depths=(1, 2, 1, 3),
    num_heads=(1, 2, 3, 4),
    sr_ratios=(4, 2, 2, 1),
    strides=(2, 2, 1, 1),
    mlp_ratio=2,
)
CLASSES = 5
ANCHORS = (
    "patch_embed1.proj.weight",
    "encoder.patch_embeddings.0.proj.weight",
    "stages.0.patch_embeddings.proj.weight",
)


def transformers_config():
    return SegformerConfig(
        hidden_sizes=BACKBONE.embed_dims,
        depths=BACKBONE.depths,
        num_attention_heads=BACKBONE.num_heads,
        sr_ratios=BACKBONE.sr_ratios,
        strides=BACKBONE.strides,
        mlp_ratios=(BACKBONE.mlp_ratio,) * 4,
        decoder_hidden_size=6,
        num_labels=7,
    )


@pytest.fixture(scope="module")
def network():
    """graphdef of RML and its parameters' shapes."""
    config = RMLConfig(BACKBONE, num_classes=CLASSES, context_channels=3)
    return nnx.split(nnx.eval_shape(lambda: RML(config, rngs=nnx.Rngs(0))))


@pytest.fixture(scope="module")
def expected_shapes(network):
    """Names and shapes of our backbone's parameters."""
    shapes = shapes_of(named_leaves(network[1]))
    return {name: shape for name, shape in shapes.items() if name.startswith("backbone/")}


@pytest.fixture(scope="module")
def original(original_layout):
    return original_layout(BACKBONE)


def randomised(cls):
    """A transformers model in which no norm or bias is left at 0 or 1."""
    torch.manual_seed(0)
    model = cls(transformers_config()).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, float("norm" in name and name.endswith("weight")), 0.2)
        else:
            torch.nn.init.normal_(parameter, 0, math.prod(parameter.shape[1:]) ** -0.5)
    return model


def in_file(model, folder):
    """The tensors as transformers writes them."""
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def in_memory(model, folder):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def shapes_of(leaves):
    return {name: tuple(leaf.shape) for name, leaf in leaves.items()}


def prefixed(tensors, prefix):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def afa(original, seed=1):
    """An AFA-style model around the original backbone."""
    rng = np.random.default_rng(seed)
    heads = {
        "classifier.weight": rng.standard_normal((CLASSES, BACKBONE.embed_dims[3], 1, 1), np.float32),
        "attn_proj.weight": 0.3 * rng.standard_normal((1, 2 * BACKBONE.num_heads[3], 1, 1), np.float32),
        "attn_proj.bias": rng.standard_normal(1, np.float32),
    }
    return prefixed(original, "encoder.") | heads


# --- Names and shapes ---


def test_original_names_give_exactly_our_backbone(original, expected_shapes):
    head = {"head.weight": np.ones((10, 16), np.float32), "head.bias": np.ones(10, np.float32)}
    found = layouts.from_foreign(original | head)
    assert found.layout == "original"
    assert shapes_of(found.weights) == expected_shapes
    assert found.left_out == dict.fromkeys(head, "the classifier of another task")


HEADS = {
    SegformerModel: {},
    SegformerForImageClassification: {"classifier.": "the classifier of another task"},
    SegformerForSemanticSegmentation: {"decode_head.": "a decoder, RML has none"},
}


@pytest.mark.parametrize("cls", HEADS)
@pytest.mark.parametrize(("read", "layout"), [(in_file, "transformers"), (in_memory, "state_dict")])
def test_names_of_transformers_give_exactly_our_backbone(cls, read, layout, expected_shapes, tmp_path):
    tensors = read(randomised(cls), tmp_path)
    found = layouts.from_foreign(tensors)
    assert found.layout == layout
    assert shapes_of(found.weights) == expected_shapes
    assert len(found.weights) + len(found.left_out) == len(tensors)
    assert bool(found.left_out) == bool(HEADS[cls])
    for start, reason in HEADS[cls].items():
        assert all(name.startswith(start) for name in found.left_out)
        assert set(found.left_out.values()) == {reason}


def test_transformers_files_and_modules_give_the_same_numbers(tmp_path):
    model = randomised(SegformerForImageClassification)
    file, memory = (layouts.from_foreign(read(model, tmp_path)).weights for read in (in_file, in_memory))
    assert_same(file, memory)


def test_names_to_transformers_are_those_of_its_files(original, tmp_path):
    weights = layouts.from_foreign(original).weights
    written = layouts.to_transformers(weights)
    assert shapes_of(written) == shapes_of(in_file(SegformerModel(transformers_config()), tmp_path))
    assert_same(layouts.from_foreign(written).weights, weights)


def test_heads_have_no_place_in_transformers_files(original):
    tensors = afa(original)
    weights = layouts.from_foreign(tensors).weights
    assert {"classifier/kernel", "affinity/kernel", "affinity/bias"} < weights.keys()
    backbone = {name: leaf for name, leaf in weights.items() if name.startswith("backbone/")}
    assert_same(layouts.to_transformers(weights), layouts.to_transformers(backbone))


PREFIXES = ["module.", "segformer.", "backbone.", "module.backbone.", "state_dict.model.", "a.b-c+d."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_prefix_may_stand_before_the_names(prefix, original):
    plain = layouts.from_foreign(original).weights
    by_transformers = layouts.to_transformers(plain)
    for tensors in (original, by_transformers):
        found = layouts.from_foreign(prefixed(tensors, prefix))
        assert_same(found.weights, plain)
        assert not found.left_out


def test_names_under_another_prefix_are_left_out(original):
    tensors = prefixed(original, "backbone.") | {"norm1.weight": np.ones(4), "other.norm1.bias": np.ones(4)}
    found = layouts.from_foreign(tensors)
    assert found.left_out == dict.fromkeys(["norm1.weight", "other.norm1.bias"], "no part of the network")


def test_only_weights_and_biases_are_taken(original):
    """Pruned, quantised or adapted layers have further tensors, some of the same shape."""
    extra = {
        f"block2.1.attn.q.{kind}": np.zeros((8, 8), np.float32) for kind in ("weight_mask", "lora_A", "scale")
    }
    found = layouts.from_foreign(original | extra)
    assert_same(found.weights, layouts.from_foreign(original).weights)
    assert found.left_out == dict.fromkeys(extra, "no part of the network")


def test_our_own_names_stay(network):
    tensors = {name: np.zeros(leaf.shape) for name, leaf in named_leaves(network[1]).items()}
    found = layouts.from_foreign(tensors | {"optimizer/step": np.zeros(())})
    assert found.layout == "rml_jax"
    assert_same(found.weights, tensors)
    assert found.left_out == {"optimizer/step": "no part of the network"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("head.weight", "the classifier of another task"),
        ("decoder.linear_pred.weight", "a decoder, RML has none"),
        ("decode_head.classifier.bias", "a decoder, RML has none"),
        ("classifier.weight", "the classifier of another task"),
        ("optimizer.state.0.exp_avg", "no part of the network"),
        ("patch_embed1.unknown.weight", "no part of the network"),
    ],
)
def test_reason_of_what_is_left_out(name, reason, original):
    found = layouts.from_foreign(original | {name: np.zeros((2, 2))})
    assert found.left_out == {name: reason}


# --- Refused ---


@pytest.mark.parametrize(
    "names", [{}, {"conv1.weight": np.zeros(3)}, {"xpatch_embed1.proj.weight": np.zeros(3)}]
)
def test_without_a_mix_transformer(names):
    with pytest.raises(ValueError, match="no Mix Transformer") as caught:
        layouts.from_foreign(names)
    message = str(caught.value)
    assert all(name in message for name in names)
    assert all(name in message for name in ANCHORS)


def test_two_networks_in_one_file(original):
    with pytest.raises(ValueError, match=r"2 Mix Transformers are in it, under student\., teacher\.:"):
        layouts.from_foreign(prefixed(original, "student.") | prefixed(original, "teacher."))


def test_two_layouts_in_one_file(original):
    both = original | layouts.to_transformers(layouts.from_foreign(original).weights)
    with pytest.raises(ValueError, match=r"2 Mix Transformers are in it, under \(none\), \(none\):"):
        layouts.from_foreign(both)


# --- Wrong shapes pass through as they are, for the comparison with the network to find ---


@pytest.mark.parametrize("shape", [(8, 2, 3, 3), (8, 8, 3, 3), (8, 3, 3), (8, 1, 5, 5), ()])
def test_wrongly_shaped_depthwise_kernel_is_not_cut(shape, original, expected_shapes):
    name = "block1.0.mlp.dwconv.dwconv.weight"
    found = layouts.from_foreign(original | {name: np.zeros(shape)}).weights
    ours = "backbone/stages/0/blocks/0/ffn/depthwise/kernel"
    assert found[ours].size == math.prod(shape)
    assert found[ours].shape != expected_shapes[ours]


@pytest.mark.parametrize("shape", [(7, 4), ()])
def test_key_and_value_that_cannot_be_split_are_left_out(shape, original, expected_shapes):
    name = "block1.0.attn.kv.weight"
    found = layouts.from_foreign(original | {name: np.zeros(shape)})
    assert name in found.left_out
    missing = {f"backbone/stages/0/blocks/0/attention/{part}/kernel" for part in ("key", "value")}
    assert expected_shapes.keys() - found.weights.keys() == missing


# --- Key and value ---


def test_keys_are_the_first_half_of_the_joint_rows(original):
    joint = np.arange(2 * 8 * 8, dtype=np.float32).reshape(16, 8)
    bias = np.arange(16, dtype=np.float32)
    found = layouts.from_foreign(
        original | {"block2.1.attn.kv.weight": joint, "block2.1.attn.kv.bias": bias}
    ).weights
    start = "backbone/stages/1/blocks/1/attention/"
    np.testing.assert_array_equal(found[start + "key/kernel"], joint[:8].T)
    np.testing.assert_array_equal(found[start + "value/kernel"], joint[8:].T)
    np.testing.assert_array_equal(found[start + "key/bias"], bias[:8])
    np.testing.assert_array_equal(found[start + "value/bias"], bias[8:])


# --- Heads of AFA-style models ---


@pytest.mark.parametrize("prefix", ["", "module.", "model.module."])
def test_afa_heads(prefix, original, network):
    tensors = afa(original)
    found = layouts.from_foreign(prefixed(tensors, prefix))
    wanted = {n: s for n, s in shapes_of(named_leaves(network[1])).items() if not n.startswith("fusion/")}
    assert shapes_of(found.weights) == wanted
    assert not found.left_out
    np.testing.assert_array_equal(
        found.weights["classifier/kernel"], tensors["classifier.weight"][:, :, 0, 0].T
    )
    # Four heads share 16 channels.
    mixing = tensors["attn_proj.weight"][0, :, 0, 0] * 2
    np.testing.assert_array_equal(found.weights["affinity/kernel"], mixing[:, None])
    np.testing.assert_array_equal(found.weights["affinity/bias"], tensors["attn_proj.bias"])
    assert found.weights["affinity/kernel"].dtype == np.float32


def test_afa_decoder_is_left_out(original):
    found = layouts.from_foreign(afa(original) | {"decoder.linear_pred.weight": np.zeros(3)})
    assert found.left_out == {"decoder.linear_pred.weight": "a decoder, RML has none"}


def test_same_names_beside_another_backbone_are_no_afa_heads(original):
    heads = {name: tensor for name, tensor in afa(original).items() if not name.startswith("encoder.")}
    found = layouts.from_foreign(prefixed(original, "backbone.") | heads)
    assert found.left_out.keys() == heads.keys()


@pytest.mark.parametrize(
    ("changes", "left_out"),
    [
        ({"classifier.weight": None}, set()),
        ({"classifier.weight": (5, 16, 3, 3)}, {"classifier.weight"}),
        ({"classifier.weight": (5,)}, {"classifier.weight"}),
        ({"classifier.bias": (5,)}, {"classifier.weight", "classifier.bias"}),
        ({"attn_proj.bias": None}, {"attn_proj.weight"}),
        ({"attn_proj.weight": ()}, {"attn_proj.weight", "attn_proj.bias"}),
        ({"attn_proj.weight": (1, 1, 1, 1)}, {"attn_proj.weight", "attn_proj.bias"}),
        ({"attn_proj.weight": (1, 8, 3, 3)}, {"attn_proj.weight", "attn_proj.bias"}),
        ({"encoder.block4.0.attn.q.weight": ()}, {"attn_proj.weight", "attn_proj.bias"}),
    ],
)
def test_incomplete_or_other_afa_heads_are_left_out(changes, left_out, original):
    tensors = afa(original)
    for name, shape in changes.items():
        tensors.pop(name, None)
        if shape is not None:
            tensors[name] = np.zeros(shape, np.float32)
    assert layouts.from_foreign(tensors).left_out.keys() == left_out


# --- The numbers: whole networks in PyTorch against ours with the converted weights ---


def norm(x, weights, name, epsilon):
    return functional.layer_norm(x, x.shape[-1:], *pair(weights, name), epsilon)


def pair(weights, name):
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def attend(x, weights, name, size, heads, reduction):
    """The original's attention: tokens [B, N, C] -> tokens, and the products q k^T [B, heads, N, keys]."""
    batch, _, channels = x.shape
    source = x
    if reduction > 1:
        maps = x.transpose(1, 2).unflatten(2, size)
        maps = functional.conv2d(maps, *pair(weights, f"{name}.sr"), stride=reduction)
        source = norm(maps.flatten(2).transpose(1, 2), weights, f"{name}.norm", 1e-5)
    width = channels // heads
    query = functional.linear(x, *pair(weights, f"{name}.q")).unflatten(2, (heads, width))
    # One linear layer for both: its outputs are (2, heads, width), keys before values.
    joint = functional.linear(source, *pair(weights, f"{name}.kv"))
    joint = joint.reshape(batch, -1, 2, heads, width)
    key, value = joint[:, :, 0], joint[:, :, 1]
    products = torch.einsum("bqhd,bkhd->bhqk", query, key)
    mixed = torch.einsum("bhqk,bkhd->bqhd", (products / math.sqrt(width)).softmax(-1), value)
    return functional.linear(mixed.flatten(2), *pair(weights, f"{name}.proj")), products


def feed_forward(x, weights, name, size):
    x = functional.linear(x, *pair(weights, f"{name}.fc1"))
    maps = x.transpose(1, 2).unflatten(2, size)
    kernel, bias = pair(weights, f"{name}.dwconv.dwconv")
    maps = functional.conv2d(maps, kernel, bias, padding=1, groups=len(kernel))
    return functional.linear(functional.gelu(maps.flatten(2).transpose(1, 2)), *pair(weights, f"{name}.fc2"))


def run_original(weights, images):
    """The original backbone: images [B, 3, H, W] -> features [B, C, H', W'] of each stage, q k^T of each block."""
    x, features, products = images, [], []
    for i in range(4):
        t, kernel = i + 1, BACKBONE.patch_sizes[i]
        x = functional.conv2d(
            x, *pair(weights, f"patch_embed{t}.proj"), stride=BACKBONE.strides[i], padding=kernel // 2
        )
        size = x.shape[2:]
        x = norm(x.flatten(2).transpose(1, 2), weights, f"patch_embed{t}.norm", 1e-5)
        for b in range(BACKBONE.depths[i]):
            block = f"block{t}.{b}"
            inputs = norm(x, weights, f"{block}.norm1", 1e-6)
            branch, scores = attend(
                inputs, weights, f"{block}.attn", size, BACKBONE.num_heads[i], BACKBONE.sr_ratios[i]
            )
            products.append(scores)
            x = x + branch
            x = x + feed_forward(norm(x, weights, f"{block}.norm2", 1e-6), weights, f"{block}.mlp", size)
        x = norm(x, weights, f"norm{t}", 1e-6).transpose(1, 2).unflatten(2, size)
        features.append(x)
    return features, products


def run_afa(tensors, images):
    """An AFA-style model: features, class logits and CAMs of stage 4, affinity."""
    weights = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    backbone = {
        n.removeprefix("encoder."): tensor for n, tensor in weights.items() if n.startswith("encoder.")
    }
    features, products = run_original(backbone, torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    maps = torch.cat(products[-2:], dim=1)
    mixed = functional.conv2d(maps + maps.transpose(2, 3), *pair(weights, "attn_proj"))
    cams = functional.conv2d(features[3], weights["classifier.weight"])
    pooled = features[3].amax(dim=(2, 3), keepdim=True)
    logits = functional.conv2d(pooled, weights["classifier.weight"])[:, :, 0, 0]
    return features, logits, cams, mixed[:, 0].sigmoid()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(3).standard_normal((2, 24, 38, 3), np.float32)


@pytest.fixture(scope="module")
def run(network):
    """Function (weights by our names, images) -> stages' features and RMLOutputs of our network."""
    graph, abstract = network
    zeros = {name: np.zeros(leaf.shape, np.float32) for name, leaf in named_leaves(abstract).items()}

    @jax.jit
    def forward(params, images):
        model = nnx.merge(graph, params)
        return model.backbone(images)[0], model(images)

    def run(weights, images):
        assert weights.keys() <= zeros.keys()
        return forward(jax.tree.map(jnp.asarray, with_leaves(abstract, zeros | weights)), images)

    return run


def assert_close(found, expected):
    """Within float32's rounding, which adds up over the blocks."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-4 * max(1, np.abs(expected).max())


def test_converted_afa_model_computes_what_the_original_computes(original, images, run):
    tensors = afa(original)
    features, outputs = run(layouts.from_foreign(tensors).weights, images)
    expected, logits, cams, affinity = run_afa(tensors, images)
    for found, theirs in zip(features, expected, strict=True):
        assert_close(found, theirs.permute(0, 2, 3, 1))
    assert_close(outputs.logits, logits)
    assert_close(outputs.cam_logits, cams.permute(0, 2, 3, 1))
    assert affinity.std() > 0.1, "a case that tells nothing"
    assert_close(jax.nn.sigmoid(outputs.affinity_logits), affinity)


@pytest.mark.parametrize("read", [in_file, in_memory])
def test_converted_transformers_model_computes_what_transformers_computes(read, images, run, tmp_path):
    model = randomised(SegformerModel)
    features, _ = run(layouts.from_foreign(read(model, tmp_path)).weights, images)
    for stage in model.stages:  # transformers has another epsilon there than the original weights
        stage.layer_norm.eps = 1e-6
        for block in stage.blocks:
            block.layernorm_before.eps = block.layernorm_after.eps = 1e-6
    with torch.no_grad():
        inputs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        expected = model(inputs, output_hidden_states=True).hidden_states
    for found, theirs in zip(features, expected, strict=True):
        assert_close(found, theirs.permute(0, 2, 3, 1))
