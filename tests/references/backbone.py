"""The Mix Transformer against transformers' SegFormer encoder in PyTorch: same weights, same images, float32."""

import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx

from rml_jax.models import BACKBONES, MixTransformer, layouts
from rml_jax.models.weights import save_transformers
from rml_jax.utils.trees import named_leaves
from tests.references.check import Check, Difference, relative
from tests.references.networks import random_network
from tests.references.torch_model import set_original_epsilons, yield_logits

OURS = (4, 2, 2, 1)
SEGFORMERS = (4, 2, 2, 2)
SIZES = ((128, 128), (96, 160), (333, 500))
GRADIENT_SIZE = (97, 130)
REFERENCE = f"transformers {transformers.__version__} (PyTorch {torch.__version__.split('+')[0]})"


def torch_encoder(backbone, parameters):
    """Returns transformers' encoder with our weights.

    Args:
      backbone: MiTConfig.
      parameters: nnx.State of `MixTransformer`.

    Returns:
      transformers.SegformerModel in evaluation mode, with its own LayerNorm epsilons, 1e-5 everywhere.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_transformers({"backbone": parameters}, backbone, Path(folder))
        encoder = transformers.SegformerModel.from_pretrained(folder).eval()
    yield_logits(encoder)
    return encoder


def torch_outputs(encoder, images):
    """Computes the outputs of `MixTransformer` by transformers' encoder.

    Args:
      encoder: transformers.SegformerModel, see `torch_encoder`.
      images: torch tensor [B, 3, H, W].

    Returns:
      features: four tensors [B, H_i, W_i, C_i].
      attention: tensor [B, 2 heads, N, N], the softmax's inputs in the last two blocks.
    """
    result = encoder(images, output_hidden_states=True, output_attentions=True)
    attention = [logits for logits in result.attentions if logits is not None]
    return [state.permute(0, 2, 3, 1) for state in result.hidden_states], torch.cat(attention, dim=1)


def _images(size):
    return np.random.default_rng(size).normal(size=(1, *size, 3)).astype(np.float32)


def _to_torch(images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def _row(variant, strides, what, differences, tolerance):
    layout = " ".join(map(str, strides))
    return Difference(f"MiT-{variant}, strides {layout}: {what}", REFERENCE, max(differences), tolerance)


def _measure_outputs(variant, strides, sizes=SIZES):
    """Measures the features of every stage and the attention logits: the largest difference over the sizes."""
    backbone = BACKBONES[variant](strides=strides)
    model = random_network(lambda: MixTransformer(backbone, rngs=nnx.Rngs(0)))
    graph, parameters = nnx.split(model)
    encoder = torch_encoder(backbone, parameters)
    set_original_epsilons(encoder)
    forward = jax.jit(lambda parameters, images: nnx.merge(graph, parameters)(images))
    of_features, of_attention = [], []
    for size in sizes:
        images = _images(size)
        features, attention = forward(parameters, images)
        with torch.no_grad():
            expected_features, expected_attention = torch_outputs(encoder, _to_torch(images))
        of_features += [relative(*pair) for pair in zip(features, expected_features, strict=True)]
        of_attention.append(relative(attention, expected_attention))
    shown = ", ".join(f"{height}x{width}" for height, width in sizes)
    return [
        _row(variant, strides, f"features of 4 stages, {shown}", of_features, 1e-4),
        _row(variant, strides, f"attention logits, {shown}", of_attention, 1e-4),
    ]


def _measure_gradients(variant, size=GRADIENT_SIZE):
    """Measures the gradients of a random linear function of all outputs, for every module and the image."""
    backbone = BACKBONES[variant]()
    model = random_network(lambda: MixTransformer(backbone, rngs=nnx.Rngs(0)))
    graph, parameters = nnx.split(model)
    images = _images(size)
    shapes = jax.tree.leaves(jax.eval_shape(lambda p: nnx.merge(graph, p)(images), parameters))
    rng = np.random.default_rng(1)
    directions = [rng.normal(size=s.shape).astype(np.float32) / np.sqrt(s.size) for s in shapes]

    def function(parameters, images):
        outputs = jax.tree.leaves(nnx.merge(graph, parameters)(images))
        return sum(jnp.vdot(*pair) for pair in zip(outputs, directions, strict=True))

    found, found_image = jax.jit(jax.grad(function, argnums=(0, 1)))(parameters, images)

    encoder = torch_encoder(backbone, parameters)
    set_original_epsilons(encoder)
    inputs = _to_torch(images).requires_grad_()
    features, attention = torch_outputs(encoder, inputs)
    outputs = zip([*features, attention], directions, strict=True)
    sum((output * torch.from_numpy(direction)).sum() for output, direction in outputs).backward()
    gradients = {name: p.grad.numpy() for name, p in encoder.named_parameters()}
    expected = layouts.from_foreign(gradients).weights

    found = _by_module({f"backbone/{name}": leaf for name, leaf in named_leaves(found).items()})
    expected = _by_module(expected)
    differences = [relative(found[module], expected[module]) for module in found]
    differences.append(relative(found_image, inputs.grad.permute(0, 2, 3, 1)))
    what = f"gradients of all parameters and of the image, {size[0]}x{size[1]}"
    return [_row(variant, OURS, what, differences, 1e-3)]


def measure_small_variance(original_epsilons=True):
    """Measures features that depend on LayerNorm's epsilon: the patch embeddings' norms scale their output by 1e-3.

    Args:
      original_epsilons: whether the reference has the original weights' epsilons, or transformers' own.

    Returns:
      list of one Difference.
    """
    backbone = BACKBONES["mini"]()
    model = random_network(lambda: MixTransformer(backbone, rngs=nnx.Rngs(0)))
    for stage in model.stages:
        stage.embedding_norm.scale[...] *= 1e-3
        stage.embedding_norm.bias[...] *= 1e-3
    graph, parameters = nnx.split(model)
    encoder = torch_encoder(backbone, parameters)
    if original_epsilons:
        set_original_epsilons(encoder)
    images = _images((32, 48))
    features, _ = jax.jit(lambda parameters, images: nnx.merge(graph, parameters)(images))(parameters, images)
    with torch.no_grad():
        expected, _ = torch_outputs(encoder, _to_torch(images))
    differences = [relative(*pair) for pair in zip(features, expected, strict=True)]
    return [_row("mini", backbone.strides, "features where LayerNorm's epsilon decides", differences, 1e-4)]


def _by_module(leaves):
    """Joins the gradients of each module's parameters in one vector; those of key biases are 0 up to rounding."""
    modules = {}
    for name, leaf in sorted(leaves.items()):
        modules.setdefault(name.rpartition("/")[0], []).append(np.ravel(leaf))
    return {module: np.concatenate(parts) for module, parts in modules.items()}


def _checks():
    yield Check("mit-epsilons", measure_small_variance)
    for variant in ("b0", "b1", "b2", "b3", "b4", "b5"):
        slow = variant > "b1"
        for strides in (OURS, SEGFORMERS):
            name = f"mit-{variant}-outputs-stride-{strides[-1]}"
            yield Check(name, functools.partial(_measure_outputs, variant, strides), slow)
        yield Check(f"mit-{variant}-gradients", functools.partial(_measure_gradients, variant), slow)


CHECKS = list(_checks())
