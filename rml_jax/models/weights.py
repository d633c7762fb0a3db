"""Loading and saving of weights.

Reads Hugging Face SegFormer files or model folders, the original `mit_b*.pth`, checkpoints of AFA-style PyTorch
models and our own safetensors, detected by their content (`rml_jax.models.layouts`). Writes our own safetensors, or a
folder that transformers loads as a SegFormer encoder. Arbitrary Python objects are never unpickled.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from rml_jax.models import layouts
from rml_jax.models.backbone import BACKBONES
from rml_jax.models.layouts import BACKBONE_PREFIX
from rml_jax.models.mit import MiTConfig
from rml_jax.utils import hub
from rml_jax.utils.errors import UserError
from rml_jax.utils.files import atomic_write
from rml_jax.utils.trees import named_leaves, with_leaves

_LISTED = 8  # names of each kind in an error or a report


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """Summary of the parameters loaded from a file.

    Attributes:
      path: the file or folder.
      layout: "original", "transformers", "state_dict" or "rml_jax" (`rml_jax.models.layouts`).
      loaded: our names of the parameters taken from the file.
      left_out: dict from the names of unused tensors in the file to the reason.
      fresh: dict from our names of the parameters not taken from the file to the reason.
      origin: what the hub says about the model (`rml_jax.utils.hub.HubModel.as_json`); empty for files.
    """

    path: str
    layout: str
    loaded: tuple[str, ...]
    left_out: dict[str, str]
    fresh: dict[str, str]
    origin: dict[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self):
        lines = [f"{self.path} ({self.layout} layout): {len(self.loaded)} parameters loaded"]
        for title, reasons in (("left out", self.left_out), ("fresh", self.fresh)):
            for reason in dict.fromkeys(reasons.values()):
                names = [name for name, why in reasons.items() if why == reason]
                lines.append(f"  {title}: {_some(names)} ({reason})")
        return "\n".join(lines)


def load_weights(params: nnx.State, path: str | Path) -> tuple[nnx.State, LoadReport]:
    """Loads a network's weights from a file.

    The backbone must be complete and of the same shape. Heads are loaded if the file has them in the same shape; a
    classifier for another number of classes is left out.

    Args:
      params: nnx.State of `RML`, arrays or jax.ShapeDtypeStruct.
      path: file, or folder of a Hugging Face model, or its name on the hub (`rml_jax.utils.hub`).

    Returns:
      nnx.State, in which parameters that are not in the file are unchanged, and a LoadReport.

    Raises:
      UserError: if the file can't be read or recognised, or its backbone differs; the message lists parameters that
        are missing, of another shape, or surplus.
    """
    origin = {}
    if hub.is_hub_name(path):
        model = hub.fetch(str(path))
        converted, path, origin = read_weights(model.folder), model, model.as_json()
    else:
        converted = read_weights(path)
    wanted = named_leaves(params)
    _check_backbone(path, converted.weights, wanted)
    unknown = dict.fromkeys(converted.weights.keys() - wanted.keys(), "no part of the network")
    loaded, fresh, left_out = {}, {}, converted.left_out | unknown
    for name, leaf in wanted.items():
        stored = converted.weights.get(name)
        if stored is None:
            fresh[name] = "not in the file"
        elif stored.shape != leaf.shape:
            fresh[name] = f"of shape {stored.shape} in the file, expected {leaf.shape}"
        else:
            loaded[name] = jnp.asarray(stored, leaf.dtype)
    report = LoadReport(str(path), converted.layout, tuple(loaded), left_out, fresh, origin)
    return with_leaves(params, wanted | loaded), report


def read_weights(path: str | Path) -> layouts.Converted:
    """Reads a file of weights in any known layout and translates it into ours.

    Args:
      path: safetensors or PyTorch file, detected by its content, or folder of a Hugging Face model.

    Returns:
      layouts.Converted.

    Raises:
      UserError: if the file can't be read or recognised, or holds numbers that are not finite.
    """
    path = Path(path)
    tensors = _read_folder(path) if path.is_dir() else _read_file(path)
    try:
        converted = layouts.from_foreign(tensors)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    integers = [name for name, tensor in converted.weights.items() if not _is_real(tensor)]
    if integers:
        raise UserError(
            f"{path}: {_some(integers)} are no floating-point numbers: expected unquantised weights"
        )
    broken = [name for name, tensor in converted.weights.items() if not np.isfinite(tensor).all()]
    if broken:
        raise UserError(f"{path}: {_some(broken)} hold NaN or infinity: expected finite numbers")
    if (path / "config.json").exists():
        _check_folder_config(path / "config.json", _backbone_shapes(converted.weights))
    return converted


def _is_real(tensor):
    # NumPy doesn't count bfloat16 among its floating types.
    return jnp.issubdtype(tensor.dtype, jnp.floating)


# --- Reading files ---


def _read_file(path):
    """Reads all tensors of a file into a dict from names to NumPy arrays."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}, expected a file of weights") from error
    # safetensors begins with the length of a JSON header; PyTorch files are zip archives or bare pickles.
    if start[8:] == b"{":
        return _read_safetensors(path)
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return _read_torch(path)
    raise UserError(f"{path}: expected a safetensors file or a PyTorch file of weights, found neither")


def _read_safetensors(path):
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError, AttributeError) as error:  # The last one: a type NumPy does not have.
        raise UserError(f"{path}: {error}, expected a whole safetensors file of weights") from error


def _read_torch(path):
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path} is a PyTorch file, which needs torch to be read: pip install 'rml_jax[torch]'"
        ) from error
    try:
        # Given a path, torch would choose the format by the file's name.
        with path.open("rb") as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
        return {
            name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()
            for name, tensor in _flatten(content)
            if isinstance(tensor, torch.Tensor)
        }
    except Exception as error:  # A damaged file can fail in any way inside zip, pickle or torch.
        raise UserError(
            f"{path}: {_torch_reason(error)}; expected a whole PyTorch file of dense tensors only, such as "
            "torch.save(model.state_dict(), FILE) writes"
        ) from error


def _torch_reason(error):
    """Returns what is wrong with a PyTorch file, without torch's advice to unpickle it."""
    foreign = re.search(r"GLOBAL (\S+)", str(error))
    if foreign:
        return f"holds a Python object ({foreign[1]}), and unpickling one can run foreign code"
    return str(error).split("\n")[0].split(". ")[0] or type(error).__name__


def _flatten(content, prefix=""):
    """Yields the leaves of nested dicts with dotted names: checkpoints often hold the weights under a key."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _flatten(value, f"{prefix}{key}.")
    else:
        yield prefix.removesuffix("."), content


def _read_folder(folder):
    """Reads a Hugging Face model folder: one safetensors file, several with an index, or a PyTorch file."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists():
        return _read_file(folder / "model.safetensors")
    if index.exists():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            paths = sorted(folder / Path(name).name for name in names)  # never outside the folder
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(
                f"{index}: expected a JSON object with weight_map, the file of each tensor"
            ) from error
        parts = [_read_file(path) for path in paths]
        return {name: tensor for part in parts for name, tensor in part.items()}
    if (folder / "pytorch_model.bin").exists():
        return _read_file(folder / "pytorch_model.bin")
    raise UserError(f"{folder}: expected a model folder with model.safetensors or pytorch_model.bin")


def _check_folder_config(path, shapes):
    """Raises a UserError if config.json differs from ours in settings that the shapes do not show."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no valid JSON ({error})") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: found no JSON object, expected the settings of a model")
    variant = find_variant(shapes)
    heads = list(BACKBONES[variant]().num_heads) if variant else None
    for key, expected in (("num_attention_heads", heads), ("hidden_act", "gelu")):
        found = config.get(key, expected)
        if expected is not None and found != expected:
            raise UserError(f"{path}: {key} is {found!r}, expected {expected!r} for {_describe(shapes)}")


# --- Comparing backbones ---


def _backbone_shapes(leaves):
    return {name: tuple(leaf.shape) for name, leaf in leaves.items() if name.startswith(BACKBONE_PREFIX)}


def _check_backbone(path, stored, wanted):
    """Raises a UserError unless the stored backbone has exactly the wanted parameters."""
    stored, wanted = _backbone_shapes(stored), _backbone_shapes(wanted)
    if stored == wanted:
        return
    missing = [f"{name} {wanted[name]}" for name in wanted if name not in stored]
    surplus = [f"{name} {stored[name]}" for name in stored if name not in wanted]
    misshapen = [
        f"{name} {stored[name]}, expected {wanted[name]}"
        for name in wanted
        if name in stored and stored[name] != wanted[name]
    ]
    found, expected = _describe(stored), _describe(wanted)
    hint = f"expected {expected} (config.model.variant)" if found != expected else "incomplete or changed"
    lines = [f"{path} holds {found}, {hint}"]
    for title, names in (("missing", missing), ("of another shape", misshapen), ("too much", surplus)):
        lines += [f"  {title}: {name}" for name in names[:_LISTED]]
        if len(names) > _LISTED:
            lines.append(f"  {title}: {len(names) - _LISTED} more")
    raise UserError("\n".join(lines))


def _describe(shapes):
    variant = find_variant(shapes)
    if variant:
        return f"MiT-{variant}"
    embed_dims, depths = _measure(shapes)
    if not any(embed_dims):
        return f"another backbone, of {len(shapes)} arrays"
    return f"a Mix Transformer with embed_dims {embed_dims} and depths {depths}"


def find_variant(shapes: dict[str, tuple[int, ...]]) -> str | None:
    """Returns the registered Mix Transformer with the same embed_dims, depths and sr_ratios.

    Args:
      shapes: dict from our names of backbone parameters to shapes.

    Returns:
      "b0" to "b5", "mini", or None.
    """
    for name, make in BACKBONES.items():
        config = make()
        if not isinstance(config, MiTConfig):
            continue
        sr_ratios = tuple(
            _first(shapes.get(f"backbone/stages/{stage}/blocks/0/attention/reduce/kernel", (1,)))
            for stage in range(len(config.depths))
        )
        if _measure(shapes) == (config.embed_dims, config.depths) and sr_ratios == config.sr_ratios:
            return name
    return None


def _measure(shapes):
    """Returns embed_dims and depths of a Mix Transformer."""
    places = [match.groups() for name in shapes if (match := _PLACE.match(name))]
    stages = sorted({int(stage) for stage, _ in places})
    embed_dims = tuple(_first(shapes.get(f"backbone/stages/{stage}/embedding/bias", ())) for stage in stages)
    blocks = {(int(stage), int(block)) for stage, block in places if block}
    return embed_dims, tuple(sum(stage == s for s, _ in blocks) for stage in stages)


_PLACE = re.compile(r"backbone/stages/(\d+)/(?:blocks/(\d+)/)?")


def _first(shape):
    return shape[0] if shape else 0


def _some(names):
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


# --- Writing files ---


def save_weights(
    params: nnx.State | dict[str, np.ndarray], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Writes parameters as safetensors. The write is atomic.

    Args:
      params: nnx.State of `RML`, or a dict from names to arrays as `read_weights` gives.
      path: pathlib.Path of the file.
      metadata: dict from str to str for the file's header, or None.
    """
    _save_tensors({name: np.asarray(leaf) for name, leaf in named_leaves(params).items()}, path, metadata)


def save_transformers(params: nnx.State | dict[str, np.ndarray], backbone: MiTConfig, folder: Path) -> None:
    """Writes a Mix Transformer as a folder that `transformers.SegformerModel.from_pretrained` reads.

    The weights are bit-identical. Features differ slightly, since all of transformers' LayerNorms have epsilon 1e-5,
    while the original weights and ours have 1e-6 in the blocks and at the ends of stages. Strides are those of
    `backbone`: the last one is 1 here and 2 in SegFormer's models.

    Args:
      params: nnx.State of `RML`, or a dict from names to arrays; heads are ignored.
      backbone: MiTConfig of the parameters.
      folder: pathlib.Path, created if it doesn't exist. config.json and model.safetensors in it are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = layouts.to_transformers(named_leaves(params))
    _save_tensors(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    atomic_write(folder / "config.json", json.dumps(_transformers_config(backbone), indent=2) + "\n")


def _save_tensors(tensors, path, metadata=None):
    from safetensors.numpy import save

    # safetensors writes an array's bytes as they are in memory but reads them in C order.
    ordered = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    atomic_write(path, save(ordered, metadata=metadata))


def _transformers_config(backbone):
    return {
        "architectures": ["SegformerModel"],
        "model_type": "segformer",
        "num_channels": 3,
        "num_encoder_blocks": len(backbone.depths),
        "depths": backbone.depths,
        "hidden_sizes": backbone.embed_dims,
        "num_attention_heads": backbone.num_heads,
        "sr_ratios": backbone.sr_ratios,
        "patch_sizes": backbone.patch_sizes,
        "strides": backbone.strides,
        "mlp_ratios": (backbone.mlp_ratio,) * len(backbone.depths),
        "hidden_act": "gelu",
        "drop_path_rate": backbone.drop_path_rate,
        "dtype": "float32",
    }


def convert(source: str | Path, target: Path, to: str) -> LoadReport:
    """Converts a file of weights in any known layout.

    Args:
      source: path of a file or a model folder, or a name on the hub (`rml_jax.utils.hub`).
      target: pathlib.Path of the file or folder to write.
      to: "rml_jax", our safetensors, or "transformers", a folder with config.json.

    Returns:
      LoadReport.

    Raises:
      UserError: if the source can't be read, its backbone is incomplete or not a registered Mix Transformer, or the
        target can't be written.
    """
    converted = read_weights(hub.fetch(source).folder if hub.is_hub_name(source) else source)
    shapes = _backbone_shapes(converted.weights)
    variant = find_variant(shapes)
    if variant is None:
        raise UserError(f"{source} holds {_describe(shapes)}: expected one of {', '.join(BACKBONES)}")
    backbone = BACKBONES[variant]()
    network = nnx.eval_shape(lambda: backbone.build(rngs=nnx.Rngs(0)))
    wanted = {BACKBONE_PREFIX + name: leaf for name, leaf in named_leaves(nnx.state(network)).items()}
    _check_backbone(source, converted.weights, wanted)
    if to == layouts.OURS and target.is_dir():
        raise UserError(f"{target} is a folder: expected the name of a file to write")
    weights, left_out = converted.weights, converted.left_out
    try:
        if to == "transformers":
            heads = [name for name in weights if not name.startswith(BACKBONE_PREFIX)]
            weights = {name: tensor for name, tensor in weights.items() if name not in heads}
            left_out = left_out | dict.fromkeys(heads, "SegFormer's encoder has no such head")
            save_transformers(weights, backbone, target)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            save_weights(weights, target)
    except OSError as error:
        raise UserError(f"{target}: {error.strerror or error}, expected a place to write to") from error
    return LoadReport(str(source), converted.layout, tuple(weights), left_out, {})
