"""Weights from and to files."""

import functools
import json
import math
import pickle
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file
from transformers import SegformerConfig, SegformerForImageClassification, SegformerModel

from rml_jax.models import BACKBONES, RML, MiTConfig, RMLConfig, layouts
from rml_jax.models.weights import load_weights, read_weights, save_transformers, save_weights
from rml_jax.utils.errors import UserError
from rml_jax.utils.trees import named_leaves

SMALL = {
    "depths": (1, 1, 1, 2),
    "num_heads": (1, 1, 2, 2),
    "sr_ratios": (2, 2, 1, 1),
    "strides": (2, 2, 1, 1),
}
BACKBONE = MiTConfig(embed_dims=(4, 4, 8, 8), mlp_ratio=2, **SMALL)
WIDER = MiTConfig(embed_dims=(4, 4, 8, 16), mlp_ratio=2, **SMALL)
MINI = BACKBONES["mini"]()


@functools.cache
def make_params(build, seed=0, backbone=BACKBONE, num_classes=3):
    config = RMLConfig(backbone, num_classes=num_classes, context_channels=5)
    return nnx.split(build(lambda: RML(config, rngs=nnx.Rngs(0)), seed))[1]


@functools.cache
def make_shapes(backbone):
    """RML's parameters as jax.ShapeDtypeStruct."""
    config = RMLConfig(backbone, num_classes=3)
    return nnx.split(nnx.eval_shape(lambda: RML(config, rngs=nnx.Rngs(0))))[1]


def make_segformer(cls=SegformerModel, backbone=BACKBONE):
    """A transformers model with random weights and the shape of a backbone of ours."""
    torch.manual_seed(0)
    config = SegformerConfig(
        hidden_sizes=backbone.embed_dims,
        depths=backbone.depths,
        num_attention_heads=backbone.num_heads,
        sr_ratios=backbone.sr_ratios,
        strides=backbone.strides,
        mlp_ratios=(backbone.mlp_ratio,) * 4,
    )
    return cls(config).eval()


@pytest.fixture
def stored(tmp_path, build):
    """Saved parameters and their file."""
    params, path = make_params(build), tmp_path / "weights.safetensors"
    save_weights(params, path)
    return params, path


@pytest.fixture(scope="module")
def original(original_layout):
    """Weights of a small backbone in the original's names, as torch tensors."""
    return {name: torch.from_numpy(tensor) for name, tensor in original_layout(BACKBONE).items()}


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def to_numpy(tensors):
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def error_of(params, path):
    with pytest.raises(UserError) as caught:
        load_weights(params, path)
    message = str(caught.value)
    assert message.startswith(str(path))
    return message


def line_of_error(path):
    """What is wrong with a file before it is compared with a network: one line."""
    message = error_of(make_shapes(BACKBONE), path)
    assert "\n" not in message
    return message


# --- Our own files ---


def test_round_trip(build, stored):
    params, path = stored
    loaded, report = load_weights(make_params(build, seed=1), path)
    assert (report.layout, report.left_out, report.fresh) == ("rml_jax", {}, {})
    assert report.loaded == tuple(named_leaves(params))
    assert_equal(loaded, params)


def test_file_holds_every_parameter_under_its_path(stored):
    params, path = stored
    tensors = load_file(path)
    assert len(tensors) == len(jax.tree.leaves(params))
    np.testing.assert_array_equal(tensors["classifier/kernel"], params["classifier"]["kernel"].get_value())
    scale = params["backbone"]["stages"][2]["norm"]["scale"].get_value()
    np.testing.assert_array_equal(tensors["backbone/stages/2/norm/scale"], scale)


def test_nothing_but_the_file_is_left(stored):
    _, path = stored
    assert list(path.parent.iterdir()) == [path]


def test_saving_again_replaces_the_file(build, stored):
    _, path = stored
    newer = make_params(build, seed=2)
    save_weights(newer, path)
    assert_equal(load_weights(make_params(build, seed=1), path)[0], newer)
    assert list(path.parent.iterdir()) == [path]


def test_arrays_in_another_order_in_memory_are_saved_right(build, stored):
    params, path = stored
    transposed = jax.tree.map(lambda leaf: np.asarray(leaf).T.copy().T, params)
    save_weights(transposed, path)
    assert_equal(load_weights(make_params(build, seed=1), path)[0], params)


def test_classifier_of_other_classes_starts_afresh(build, stored):
    params, path = stored
    target = make_params(build, seed=1, num_classes=4)
    loaded, report = load_weights(target, path)
    assert list(report.fresh) == ["classifier/kernel"]
    assert report.fresh["classifier/kernel"] == "of shape (8, 3) in the file, expected (8, 4)"
    np.testing.assert_array_equal(
        loaded["classifier"]["kernel"].get_value(), target["classifier"]["kernel"].get_value()
    )
    for part in ("backbone", "affinity", "fusion"):
        assert_equal(loaded[part], params[part])


def test_backbone_alone_will_do(build, stored):
    params, path = stored
    save_file({n: tensor for n, tensor in load_file(path).items() if n.startswith("backbone/")}, path)
    target = make_params(build, seed=1)
    loaded, report = load_weights(target, path)
    assert {name.split("/")[0] for name in report.fresh} == {"classifier", "affinity", "fusion"}
    assert len(report.fresh) == 5
    assert_equal(loaded["backbone"], params["backbone"])
    for part in ("classifier", "affinity", "fusion"):
        assert_equal(loaded[part], target[part])


def test_numbers_take_the_networks_type(build, stored):
    params, path = stored
    save_file({name: tensor.astype(np.float16) for name, tensor in load_file(path).items()}, path)
    loaded, _ = load_weights(make_params(build, seed=1), path)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype(jnp.float32)}
    for one, other in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)


# --- PyTorch files, told apart by their content ---


def save_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_checkpoint(tensors, path):
    """What a training script leaves: weights under a key of their own beside numbers of other kinds."""
    model = {f"module.{name}": tensor for name, tensor in tensors.items()}
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}
    torch.save({"epoch": 3, "best": None, "state_dict": model, "optimizer": optimizer}, path)


def save_parameters(tensors, path):
    """nn.Parameter, as dict(model.named_parameters()) has them."""
    torch.save({name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}, path)


WRITERS = {
    "safetensors": lambda tensors, path: save_file(to_numpy(tensors), path),
    "zip": torch.save,
    "legacy": save_legacy,
    "checkpoint": save_checkpoint,
    "parameters": save_parameters,
}


@pytest.mark.parametrize("name", ["weights.safetensors", "mit_b1.pth", "weights"])
@pytest.mark.parametrize("kind", WRITERS)
def test_the_content_counts_and_not_the_name(kind, name, original, tmp_path):
    WRITERS[kind](original, tmp_path / name)
    found = read_weights(tmp_path / name)
    assert found.layout == "original"
    assert_same(found.weights, layouts.from_foreign(to_numpy(original)).weights)
    others = {"checkpoint": {"optimizer.state.0.step": "no part of the network"}}
    assert found.left_out == others.get(kind, {})


@pytest.mark.parametrize("kind", ["safetensors", "zip"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_types(kind, dtype, original, tmp_path):
    path = tmp_path / "weights"
    tensors = {name: tensor.to(dtype) for name, tensor in original.items()}
    if kind == "zip":
        torch.save(tensors, path)
    else:
        # NumPy has no bfloat16 of its own.
        numpy_type = jnp.bfloat16 if dtype == torch.bfloat16 else tensors["norm1.bias"].numpy().dtype
        save_file(
            {name: tensor.double().numpy().astype(numpy_type) for name, tensor in tensors.items()}, path
        )
    loaded, _ = load_weights(make_shapes(BACKBONE), path)
    rounded = to_numpy({name: tensor.float() for name, tensor in tensors.items()})
    expected = layouts.from_foreign(rounded).weights
    found = {n: leaf for n, leaf in named_leaves(loaded).items() if n.startswith("backbone/")}
    assert {leaf.dtype for leaf in found.values()} == {jnp.dtype(jnp.float32)}
    assert_same(found, expected)


class Trap:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def dump(content, path):
    path.write_bytes(pickle.dumps(content))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [torch.save, save_legacy, dump], ids=["zip", "legacy", "pickle"])
def test_objects_in_a_file_are_not_unpickled(write, original, tmp_path):
    trap, path = tmp_path / "sprung", tmp_path / "weights.pth"
    write({"state_dict": original, "options": Trap(trap)}, path)
    message = line_of_error(path)
    assert not trap.exists()
    assert "expected a whole PyTorch file of dense tensors only" in message
    assert "weights_only" not in message, "torch's advice to unpickle it all the same"
    if write is not dump:
        assert "holds a Python object (" in message
    if write is dump:
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert trap.exists(), "a trap that does not work"


def test_arrays_in_a_file_are_refused_by_name(original, tmp_path):
    torch.save({"state_dict": original, "means": np.ones(3)}, tmp_path / "weights.pth")
    assert "numpy" in line_of_error(tmp_path / "weights.pth")


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
@pytest.mark.parametrize("write", [torch.save, save_legacy], ids=["zip", "legacy"])
def test_truncated_torch_file(write, share, original, tmp_path):
    path = tmp_path / "weights.pth"
    write(original, path)
    data = path.read_bytes()
    path.write_bytes(data[: math.ceil(share * len(data))])
    assert "expected a " in line_of_error(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_safetensors_file(stored, share):
    _, path = stored
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert "expected a " in line_of_error(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"once upon a time",
        b"PK\x03\x04 a zip archive, as torch saves it" * 20,
        b"\x80\x02 a pickle" * 20,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        b"\x02\0\0\0\0\0\0\0{}",
        b"\x08\0\0\0\0\0\0\0{\xff\xff\xff\xff\xff\xff\xff",
        b"\xff\xff\xff\xff\xff\xff\xff\x7f{",
    ],
)
def test_files_of_another_kind(data, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(data)
    assert "expected a " in line_of_error(path)


def test_missing_file(tmp_path):
    assert "No such file" in line_of_error(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("content", [[], 3, torch.ones(2), {"model": {}}, {"conv1.weight": torch.ones(2)}])
def test_torch_file_without_a_network(content, tmp_path):
    torch.save(content, tmp_path / "weights.pth")
    assert "no Mix Transformer is in it" in line_of_error(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor.to_sparse(),
        lambda tensor: tensor.to(torch.float8_e4m3fn),
        lambda tensor: tensor.to(torch.int8),
        lambda tensor: tensor.to(torch.complex64),
    ],
    ids=["sparse", "float8", "int8", "complex"],
)
def test_torch_tensors_of_another_kind_are_refused(change, original, tmp_path):
    name = "block1.0.attn.q.weight"
    torch.save(original | {name: change(original[name])}, tmp_path / "weights.pth")
    assert "expected" in line_of_error(tmp_path / "weights.pth")


def test_quantised_safetensors_are_refused(original, tmp_path):
    path, name = tmp_path / "weights.safetensors", "block1.0.attn.q.weight"
    save_file(to_numpy(original | {name: original[name].to(torch.int8)}), path)
    message = line_of_error(path)
    assert "backbone/stages/0/blocks/0/attention/query/kernel are no floating-point numbers" in message
    save_file(to_numpy(original) | {name: original[name].numpy().astype(jnp.float8_e4m3fn)}, path)
    assert "expected a whole safetensors file" in line_of_error(path)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(number, original, tmp_path):
    path = tmp_path / "weights.pth"
    broken = original["norm3.bias"].clone()
    broken[-1] = number
    torch.save(original | {"norm3.bias": broken}, path)
    assert "backbone/stages/2/norm/bias hold NaN or infinity" in line_of_error(path)
    torch.save(original | {"head.bias": broken}, path)
    assert "head.bias" in load_weights(make_shapes(BACKBONE), path)[1].left_out


def test_without_torch_the_way_to_get_it_is_named(original, tmp_path, monkeypatch):
    torch.save(original, tmp_path / "weights.pth")
    save_file(to_numpy(original), tmp_path / "weights.safetensors")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pip install 'rml_jax[torch]'" in line_of_error(tmp_path / "weights.pth")
    assert read_weights(tmp_path / "weights.safetensors").layout == "original"


# --- Folders ---


def save_one(model, folder):
    model.save_pretrained(folder)


def save_shards(model, folder):
    model.save_pretrained(folder, max_shard_size="4KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert not (folder / "model.safetensors").exists()


def save_bin(model, folder):
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


@pytest.mark.parametrize("save", [save_one, save_shards, save_bin])
def test_model_folder(save, tmp_path):
    model = make_segformer(SegformerForImageClassification)
    save(model, tmp_path)
    loaded, report = load_weights(make_shapes(BACKBONE), tmp_path)
    expected = layouts.from_foreign(to_numpy(model.state_dict())).weights
    found = {n: leaf for n, leaf in named_leaves(loaded).items() if n.startswith("backbone/")}
    assert_same(found, expected)
    assert report.left_out.keys() == {"classifier.weight", "classifier.bias"}


def test_folder_without_weights(tmp_path):
    assert "expected a model folder with model.safetensors or pytorch_model.bin" in line_of_error(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        "\xff",
        '{"weight_map": []}',
        '{"weight_map": {"a": 5}}',
        '{"weight_map": {"a": 5, "b": "model-1.safetensors"}}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": "model-1.safetensors"}}',
        '{"weight_map": {"a": ".."}}',
    ],
)
def test_broken_index(text, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_bytes(text.encode("latin-1"))
    assert "expected" in line_of_error(tmp_path)


def test_index_that_points_outside_of_the_folder(original, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(to_numpy(original), tmp_path / "other.safetensors")
    for place in ("../other.safetensors", str(tmp_path / "other.safetensors")):
        index = {"weight_map": dict.fromkeys(original, place)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert f"{folder / 'other.safetensors'}: No such file" in line_of_error(folder)


@pytest.fixture
def mini_folder(tmp_path):
    """A folder of transformers with the shape of `mini`."""
    make_segformer(backbone=MINI).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("num_attention_heads", [1, 2, 3, 8], r"expected \[1, 2, 3, 4\] for MiT-mini"),
        ("num_attention_heads", 4, r"expected \[1, 2, 3, 4\] for MiT-mini"),
        ("hidden_act", "relu", "expected 'gelu' for MiT-mini"),
    ],
)
def test_settings_that_shapes_do_not_show(key, value, expected, mini_folder):
    config = json.loads((mini_folder / "config.json").read_text())
    (mini_folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(UserError, match=expected) as caught:
        load_weights(make_shapes(MINI), mini_folder)
    assert str(caught.value).startswith(f"{mini_folder / 'config.json'}: {key} is {value!r}, ")


@pytest.mark.parametrize("text", ["{", "[]", "3", None])
def test_broken_settings(text, mini_folder):
    path = mini_folder / "config.json"
    path.unlink()
    if text is None:
        path.mkdir()
    else:
        path.write_text(text)
    with pytest.raises(UserError, match="JSON"):
        load_weights(make_shapes(MINI), mini_folder)


@pytest.mark.parametrize("text", [None, "{}"])
def test_settings_may_be_missing(text, mini_folder):
    (mini_folder / "config.json").unlink()
    if text:
        (mini_folder / "config.json").write_text(text)
    _, report = load_weights(make_shapes(MINI), mini_folder)
    assert "backbone/stages/3/norm/bias" in report.loaded


# --- Another backbone ---


def save_zeros(original_layout, backbone, path):
    """A file of a large variant without its bytes: all elements of a tensor are one zero."""
    shapes = {name: tensor.shape for name, tensor in original_layout(backbone).items()}
    torch.save({name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}, path)
    assert path.stat().st_size < 1e6


def test_b0_in_place_of_b1_is_refused_and_both_are_named(original_layout, tmp_path):
    path = tmp_path / "mit_b0.pth"
    save_zeros(original_layout, BACKBONES["b0"](), path)
    lines = error_of(make_shapes(BACKBONES["b1"]()), path).splitlines()
    assert lines[0] == f"{path} holds MiT-b0, expected MiT-b1 (config.model.variant)"
    start = "backbone/stages/0/blocks/0/"
    assert f"  of another shape: {start}attention/key/kernel (32, 32), expected (64, 64)" in lines
    assert lines[-1].startswith("  of another shape: ")
    assert lines[-1].endswith(" more")
    assert len(lines) < 12


@pytest.mark.parametrize(
    ("stored", "wanted", "title", "name"),
    [
        ("b2", "b1", "too much", "backbone/stages/0/blocks/2/attention/key/bias (64,)"),
        ("b1", "b2", "missing", "backbone/stages/0/blocks/2/attention/key/bias (64,)"),
    ],
)
def test_variants_that_differ_in_depth_alone(stored, wanted, title, name, original_layout, tmp_path):
    """The names and shapes of b1 are all in b2, too."""
    path = tmp_path / "weights.pth"
    save_zeros(original_layout, BACKBONES[stored](), path)
    lines = error_of(make_shapes(BACKBONES[wanted]()), path).splitlines()
    assert lines[0] == f"{path} holds MiT-{stored}, expected MiT-{wanted} (config.model.variant)"
    assert f"  {title}: {name}" in lines
    assert all(line.startswith(f"  {title}: ") for line in lines[1:])
    # b2 has 1 + 2 + 4 + 1 blocks more; those of stages 1 to 3 have 22 parameters, those of stage 4 have 18.
    assert lines[-1] == f"  {title}: {7 * 22 + 18 - 8} more"


def test_another_width_is_refused(build, stored):
    _, path = stored
    message = error_of(make_params(build, backbone=WIDER), path)
    assert "embed_dims (4, 4, 8, 8) and depths (1, 1, 1, 2), expected a Mix Transformer with" in message
    name = "backbone/stages/3/blocks/0/attention/key/bias"
    assert f"  of another shape: {name} (8,), expected (16,)" in message


def test_incomplete_backbone_is_refused(build, stored):
    _, path = stored
    tensors = load_file(path)
    del tensors["backbone/stages/1/norm/bias"]
    save_file(tensors, path)
    lines = error_of(make_params(build), path).splitlines()
    assert lines[0].endswith(", incomplete or changed")
    assert lines[1:] == ["  missing: backbone/stages/1/norm/bias (4,)"]


@pytest.mark.parametrize(
    "name", ["backbone/unknown", "backbone/stages/x/bias", "backbone/stages/0/blocks/new/bias"]
)
def test_backbone_with_an_unknown_part_is_refused(name, build, stored):
    _, path = stored
    save_file(load_file(path) | {name: np.ones(2, np.float32)}, path)
    assert error_of(make_params(build), path).endswith(f"\n  too much: {name} (2,)")


@pytest.mark.parametrize("shape", [(), (4, 1)])
def test_wrong_number_of_axes_is_refused(shape, build, stored):
    _, path = stored
    name = "backbone/stages/0/embedding/bias"
    save_file(load_file(path) | {name: np.ones(shape, np.float32)}, path)
    assert f"  of another shape: {name} {shape}, expected (4,)" in error_of(make_params(build), path)


def test_unknown_heads_are_reported(build, stored):
    params, path = stored
    save_file(load_file(path) | {"classifier/bias": np.ones(3, np.float32)}, path)
    loaded, report = load_weights(make_params(build, seed=1), path)
    assert report.left_out == {"classifier/bias": "no part of the network"}
    assert_equal(loaded, params)


# --- The report ---


def test_report_tells_what_was_loaded_left_out_and_fresh_and_why(build, original, tmp_path):
    path = tmp_path / "model.pth"
    heads = {
        "classifier.weight": torch.ones(7, 8, 1, 1),
        "attn_proj.weight": torch.ones(1, 4, 1, 1),
        "attn_proj.bias": torch.ones(1),
        "decoder.linear.weight": torch.ones(2),
        "decoder.linear.bias": torch.ones(2),
        "extra": torch.ones(2),
    }
    torch.save({f"encoder.{name}": tensor for name, tensor in original.items()} | heads, path)
    params = make_params(build, seed=1)
    loaded, report = load_weights(params, path)
    count = sum(name.startswith(("backbone/", "affinity/")) for name in named_leaves(params))
    assert str(report).splitlines() == [
        f"{path} (original layout): {count} parameters loaded",
        "  left out: decoder.linear.weight, decoder.linear.bias (a decoder, RML has none)",
        "  left out: extra (no part of the network)",
        "  fresh: classifier/kernel (of shape (8, 7) in the file, expected (8, 3))",
        "  fresh: fusion/bias, fusion/kernel (not in the file)",
    ]
    for name, leaf in named_leaves(loaded).items():
        kept = np.array_equal(leaf, named_leaves(params)[name])
        assert kept == (name in report.fresh)
        assert (name in report.loaded) != (name in report.fresh)


def test_report_cuts_long_lists(original, tmp_path):
    extra = {f"optimizer.{number}": torch.ones(1) for number in range(20)}
    torch.save(original | extra, tmp_path / "weights.pth")
    _, report = load_weights(make_shapes(BACKBONE), tmp_path / "weights.pth")
    assert "optimizer.7 and 12 more (no part of the network)" in str(report)


# --- To transformers and back ---


def read_back(folder):
    model, info = SegformerModel.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    assert not any(info.values()), info
    return model.eval()


def test_weights_survive_transformers_to_the_bit(build, tmp_path):
    params = make_params(build)
    save_transformers(params, BACKBONE, tmp_path / "ours")
    read_back(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    loaded, report = load_weights(make_params(build, seed=1), tmp_path / "theirs")
    assert_equal(loaded["backbone"], params["backbone"])
    assert not report.left_out
    assert {name.split("/")[0] for name in report.fresh} == {"classifier", "affinity", "fusion"}


def test_features_of_a_transformers_model_survive_us_to_the_bit(tmp_path):
    model = make_segformer(SegformerForImageClassification)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, float("norm" in name and name.endswith("weight")), 0.3)
    model.save_pretrained(tmp_path / "theirs")
    loaded, _ = load_weights(make_shapes(BACKBONE), tmp_path / "theirs")
    save_transformers({"backbone": loaded["backbone"]}, BACKBONE, tmp_path / "ours")
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 32, 45), np.float32))
    with torch.no_grad():
        expected, found = (
            encoder(images, output_hidden_states=True).hidden_states
            for encoder in (model.segformer, read_back(tmp_path / "ours"))
        )
    assert len(found) == 4
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert all(feature.std() > 0.1 for feature in found)


@pytest.mark.parametrize("cls", [SegformerModel, SegformerForImageClassification])
def test_names_in_memory_are_loaded_like_those_in_files(cls, tmp_path):
    """From version 5 on, state_dict() names modules otherwise than the files of save_pretrained."""
    model = make_segformer(cls)
    assert any(name.endswith("stages.0.blocks.0.attention.q_proj.weight") for name in model.state_dict())
    torch.save(model.state_dict(), tmp_path / "memory.pth")
    model.save_pretrained(tmp_path / "files")
    found, expected = (
        load_weights(make_shapes(BACKBONE), tmp_path / name)[0]["backbone"]
        for name in ("memory.pth", "files")
    )
    assert_equal(found, expected)
    (query,) = (
        module
        for name, module in model.named_modules()
        if name.endswith("stages.0.blocks.0.attention.q_proj")
    )
    kernel = found["stages"][0]["blocks"][0]["attention"]["query"]["kernel"].get_value()
    np.testing.assert_array_equal(kernel, query.weight.detach().numpy().T)


def test_settings_for_transformers_are_the_networks(build, tmp_path):
    save_transformers(make_params(build), BACKBONE, tmp_path)
    found, expected = read_back(tmp_path).config.to_dict(), make_segformer().config.to_dict()
    keys = (
        "hidden_sizes",
        "depths",
        "num_attention_heads",
        "sr_ratios",
        "strides",
        "patch_sizes",
        "mlp_ratios",
    )
    assert {key: list(found[key]) for key in keys} == {key: list(expected[key]) for key in keys}
    assert (found["hidden_act"], found["drop_path_rate"]) == ("gelu", BACKBONE.drop_path_rate)


def test_nothing_but_two_files_is_left_for_transformers(build, tmp_path):
    folder = tmp_path / "new" / "folder"
    for seed in (0, 1):
        save_transformers(make_params(build, seed), BACKBONE, folder)
        assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    loaded, _ = load_weights(make_params(build), folder)
    assert_equal(loaded["backbone"], make_params(build, 1)["backbone"])
