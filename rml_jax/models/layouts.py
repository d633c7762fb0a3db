"""Translation of the names and shapes of weights between other layouts and ours.

Besides our own layout of any backbone (`rml_jax.utils.trees`), three layouts of Mix Transformers are supported:

  "original"      the SegFormer authors' `mit_b*.pth`, with keys and values in one matrix `kv`. AFA-style models have
                  it under `encoder.`, next to the heads `classifier` and `attn_proj`.
  "transformers"  files of Hugging Face's transformers, as on its hub.
  "state_dict"    the names of the same modules in memory, since transformers 5.

A prefix (`module.`, `segformer.`, `backbone.`, ...) may precede a layout's names. All functions are pure and work on
dicts of arrays.
"""

import dataclasses
import re

import numpy as np

OURS = "rml_jax"

LAYOUTS = ("original", "transformers", "state_dict")

BACKBONE_PREFIX = "backbone/"
"""Prefix of the names of a backbone's parameters in our layout."""

# Our modules and their names in each layout. {s} is the stage, {t} the stage counted from 1, {b} the block.
_STAGE = "backbone/stages/{s}/"
_STAGE_MODULES = {
    "embedding": (
        "patch_embed{t}.proj",
        "encoder.patch_embeddings.{s}.proj",
        "stages.{s}.patch_embeddings.proj",
    ),
    "embedding_norm": (
        "patch_embed{t}.norm",
        "encoder.patch_embeddings.{s}.layer_norm",
        "stages.{s}.patch_embeddings.layer_norm",
    ),
    "norm": ("norm{t}", "encoder.layer_norm.{s}", "stages.{s}.layer_norm"),
}
_BLOCK = ("block{t}.{b}.", "encoder.block.{s}.{b}.", "stages.{s}.blocks.{b}.")
_BLOCK_MODULES = {
    "attention_norm": ("norm1", "layer_norm_1", "layernorm_before"),
    "attention/query": ("attn.q", "attention.self.query", "attention.q_proj"),
    "attention/key": ("attn.k", "attention.self.key", "attention.k_proj"),
    "attention/value": ("attn.v", "attention.self.value", "attention.v_proj"),
    "attention/projection": ("attn.proj", "attention.output.dense", "attention.o_proj"),
    "attention/reduce": ("attn.sr", "attention.self.sr", "attention.sequence_reduction.sequence_reduction"),
    "attention/reduce_norm": (
        "attn.norm",
        "attention.self.layer_norm",
        "attention.sequence_reduction.layer_norm",
    ),
    "ffn_norm": ("norm2", "layer_norm_2", "layernorm_after"),
    "ffn/expand": ("mlp.fc1", "mlp.dense1", "mlp.fc1"),
    "ffn/depthwise": ("mlp.dwconv.dwconv",) * 3,
    "ffn/contract": ("mlp.fc2", "mlp.dense2", "mlp.fc2"),
}


def _templates(layout):
    """Returns pairs of module names, ours and the layout's, with {s}, {t} and {b} to be filled in."""
    column = LAYOUTS.index(layout)
    stages = [(_STAGE + ours, theirs[column]) for ours, theirs in _STAGE_MODULES.items()]
    blocks = [
        (f"{_STAGE}blocks/{{b}}/{ours}", _BLOCK[column] + theirs[column])
        for ours, theirs in _BLOCK_MODULES.items()
    ]
    return stages + blocks


@dataclasses.dataclass(frozen=True)
class Converted:
    """A file's tensors in our layout.

    Attributes:
      layout: of the file: "original", "transformers", "state_dict" or "rml_jax".
      weights: dict from our parameter names to arrays.
      left_out: dict from the file's other names to the reason why they are not used.
    """

    layout: str
    weights: dict[str, np.ndarray]
    left_out: dict[str, str]


def from_foreign(tensors: dict[str, np.ndarray]) -> Converted:
    """Detects the layout of a file's tensors and translates them into ours.

    Args:
      tensors: dict from names to NumPy arrays, as a file holds them.

    Returns:
      Converted.

    Raises:
      ValueError: if no layout is recognised, or more than one network is found.
    """
    layout, prefix = _recognise(tensors)
    if layout == OURS:
        ours = (BACKBONE_PREFIX, "classifier/", "affinity/", "fusion/")
        weights = {name: tensor for name, tensor in tensors.items() if name.startswith(ours)}
        return Converted(layout, weights, {name: _reason(name) for name in tensors if name not in weights})
    heads = {}
    if layout == "original":
        if prefix.endswith("encoder."):
            heads = _afa_heads(tensors, prefix)
        tensors = _split_key_and_value(tensors, prefix)
    patterns = [(_pattern(prefix + theirs), ours) for ours, theirs in _templates(layout)]
    weights, left_out = {}, {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if name in heads:
            ours, head = heads[name]
            weights[ours] = head
        elif kind in ("weight", "bias") and (found := _find(patterns, module)):
            ours, place = found
            weights[f"{ours.format(**place)}/{_leaf(ours, kind)}"] = _to_ours(ours, tensor)
        else:
            left_out[name] = _reason(name)
    return Converted(layout, weights, left_out)


def to_transformers(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Translates a Mix Transformer's weights into the layout of transformers' `SegformerModel` in its files.

    Args:
      weights: dict from our parameter names to arrays; heads are ignored.

    Returns:
      Dict from names such as "encoder.patch_embeddings.0.proj.weight" to arrays.
    """
    patterns = [(_pattern(ours), (ours, theirs)) for ours, theirs in _templates("transformers")]
    result = {}
    for name, tensor in weights.items():
        module, _, leaf = name.rpartition("/")
        if found := _find(patterns, module):
            (ours, theirs), place = found
            kind = "bias" if leaf == "bias" else "weight"
            result[f"{theirs.format(**place)}.{kind}"] = _to_theirs(ours, np.asarray(tensor))
    return result


# --- Recognition ---

_ANCHORS = {layout: dict(_templates(layout))[_STAGE + "embedding"].format(s=0, t=1) for layout in LAYOUTS}


def _recognise(tensors):
    """Returns the layout and the prefix of its names, found by the name of the first patch embedding's weight."""
    if any(name.startswith(BACKBONE_PREFIX) for name in tensors):
        return OURS, ""
    found = []
    for layout, module in _ANCHORS.items():
        anchor = module + ".weight"
        found += [
            (layout, n.removesuffix(anchor)) for n in tensors if n == anchor or n.endswith("." + anchor)
        ]
    if not found:
        some = ", ".join(sorted(tensors)[:3]) or "no tensors at all"
        expected = ", ".join(f"{module}.weight" for module in _ANCHORS.values())
        raise ValueError(
            f"no Mix Transformer is in it (found {some}): expected a name ending in {expected} or beginning with "
            f"{BACKBONE_PREFIX}"
        )
    if len(found) > 1:
        prefixes = ", ".join(prefix or "(none)" for _, prefix in found)
        raise ValueError(f"{len(found)} Mix Transformers are in it, under {prefixes}: expected one")
    return found[0]


def _pattern(template):
    numbers = {"s": r"(?P<s>\d+)", "t": r"(?P<t>\d+)", "b": r"(?P<b>\d+)"}
    parts = re.split(r"\{([stb])\}", template)
    return re.compile("".join(numbers[part] if i % 2 else re.escape(part) for i, part in enumerate(parts)))


def _find(patterns, module):
    """Returns the value of the pattern that matches a module's name, with its stage and block, or None."""
    for pattern, value in patterns:
        if match := pattern.fullmatch(module):
            place = {key: int(number) for key, number in match.groupdict().items()}
            stage = place["s"] if "s" in place else place["t"] - 1
            return value, place | {"s": stage, "t": stage + 1}
    return None


# --- Shapes: in PyTorch, output channels precede input channels, and a kernel's spatial axes are last ---


def _leaf(module, kind):
    if kind == "bias":
        return "bias"
    return "scale" if module.endswith("norm") else "kernel"


def _to_ours(module, tensor):
    if module.endswith("depthwise") and tensor.ndim == 4 and tensor.shape[1] == 1:
        return tensor[:, 0].transpose(1, 2, 0)
    if tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0)
    return tensor.T if tensor.ndim == 2 else tensor


def _to_theirs(module, tensor):
    if module.endswith("depthwise") and tensor.ndim == 3:
        return tensor.transpose(2, 0, 1)[:, None]
    if tensor.ndim == 4:
        return tensor.transpose(3, 2, 0, 1)
    return tensor.T if tensor.ndim == 2 else tensor


def _split_key_and_value(tensors, prefix):
    """Splits the original's joint matrix: keys in the first half of its rows, values in the second."""
    result = {}
    for name, tensor in tensors.items():
        stem, joint, kind = name.rpartition(".kv.")
        if joint and name.startswith(prefix) and tensor.ndim and tensor.shape[0] % 2 == 0:
            result[f"{stem}.k.{kind}"], result[f"{stem}.v.{kind}"] = np.split(tensor, 2)
        else:
            result[name] = tensor
    return result


# --- Tensors outside the backbone ---


def _afa_heads(tensors, prefix):
    """Returns RML's classifier and affinity head in an AFA-style model, whose backbone has the given prefix.

    AFA mixes the products q k^T. Ours are divided by the square root of a head's width, so AFA's weights are
    multiplied by it.

    Returns:
      Dict from the model's name to ours and the array.
    """
    root = prefix.removesuffix("encoder.")
    heads = {}
    classifier, projection, bias = (
        tensors.get(root + name) for name in ("classifier.weight", "attn_proj.weight", "attn_proj.bias")
    )
    # Ours has no bias.
    if classifier is not None and _is_pointwise(classifier) and root + "classifier.bias" not in tensors:
        kernel = classifier.reshape(classifier.shape[:2]).T
        heads[root + "classifier.weight"] = "classifier/kernel", kernel
    query = tensors.get(prefix + "block4.0.attn.q.weight")
    found = all(tensor is not None for tensor in (projection, bias, query))
    if found and _is_pointwise(projection) and projection.shape[1] >= 2 and query.ndim == 2:
        width = len(query) / (projection.shape[1] // 2)
        kernel = projection.reshape(projection.shape[:2]).T * np.sqrt(width).astype(projection.dtype)
        heads[root + "attn_proj.weight"] = "affinity/kernel", kernel
        heads[root + "attn_proj.bias"] = "affinity/bias", bias
    return heads


def _is_pointwise(kernel):
    return kernel.ndim >= 2 and kernel.size == kernel.shape[0] * kernel.shape[1]


def _reason(name):
    """Returns why a tensor is not used."""
    parts = name.split(".")
    if "decode_head" in parts or "decoder" in parts:
        return "a decoder, RML has none"
    if "head" in parts or "classifier" in parts:
        return "the classifier of another task"
    return "no part of the network"
