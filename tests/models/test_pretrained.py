"""Weights from and to files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from rml_jax.errors import UserError
from rml_jax.models import RML, MiTConfig, RMLConfig
from rml_jax.models.pretrained import load_weights, save_weights

SMALL = {"depths": (1, 1, 1, 2), "heads": (1, 1, 2, 2), "reductions": (2, 2, 1, 1), "strides": (2, 2, 1, 1)}
BACKBONE = MiTConfig(channels=(4, 4, 8, 8), mlp_ratio=2, **SMALL)
WIDER = MiTConfig(channels=(4, 4, 8, 16), mlp_ratio=2, **SMALL)


def make_params(build, seed=0, backbone=BACKBONE, num_classes=3):
    config = RMLConfig(backbone, num_classes=num_classes, context_channels=5)
    return nnx.split(build(lambda: RML(config, rngs=nnx.Rngs(0)), seed))[1]


@pytest.fixture
def stored(tmp_path, build):
    """Saved parameters and their file."""
    params, path = make_params(build), tmp_path / "weights.safetensors"
    save_weights(params, path)
    return params, path


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def error_of(params, path):
    with pytest.raises(UserError) as caught:
        load_weights(params, path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_round_trip(build, stored):
    params, path = stored
    loaded, fresh = load_weights(make_params(build, seed=1), path)
    assert fresh == []
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
    loaded, fresh = load_weights(target, path)
    assert fresh == ["classifier/kernel"]
    np.testing.assert_array_equal(
        loaded["classifier"]["kernel"].get_value(), target["classifier"]["kernel"].get_value()
    )
    for part in ("backbone", "affinity", "fusion"):
        assert_equal(loaded[part], params[part])


def test_backbone_alone_will_do(build, stored):
    params, path = stored
    save_file({n: tensor for n, tensor in load_file(path).items() if n.startswith("backbone/")}, path)
    target = make_params(build, seed=1)
    loaded, fresh = load_weights(target, path)
    assert {name.split("/")[0] for name in fresh} == {"classifier", "affinity", "fusion"}
    assert len(fresh) == 5
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


def test_another_variant_is_refused(build, stored):
    _, path = stored
    message = error_of(make_params(build, backbone=WIDER), path)
    name = "backbone/stages/3/blocks/0/attention/key/bias"
    assert f"{path}: {name} is of shape (8,), expected (16,)" in message


def test_incomplete_backbone_is_refused(build, stored):
    _, path = stored
    tensors = load_file(path)
    del tensors["backbone/stages/1/norm/bias"]
    save_file(tensors, path)
    message = error_of(make_params(build), path)
    assert "backbone/stages/1/norm/bias is missing, expected (4,) (1 backbone parameters" in message


def test_missing_file(build, tmp_path):
    assert "No such file" in error_of(make_params(build), tmp_path / "nothing.safetensors")


def test_folder_instead_of_a_file(build, tmp_path):
    error_of(make_params(build), tmp_path)


def test_file_of_another_format(build, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"PK\x03\x04 a zip archive, as torch saves it" * 20)
    assert "expected a safetensors file" in error_of(make_params(build), path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file(build, stored, share):
    params, path = stored
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert "expected a safetensors file" in error_of(params, path)
