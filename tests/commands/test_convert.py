"""rml-jax convert: weights of others to ours, and ours to transformers."""

import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import SegformerModel

import rml_jax
from rml_jax.commands.convert import main
from rml_jax.models import BACKBONES, MiTConfig, layouts
from rml_jax.models.weights import read_weights

MINI = BACKBONES["mini"]()
UNNAMED = MiTConfig(
    embed_dims=(4, 4, 8, 8),
    depths=(1, 1, 1, 2),
    num_heads=(1, 1, 2, 2),
    sr_ratios=(2, 2, 1, 1),
    strides=(2, 2, 1, 1),
    mlp_ratio=2,
)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.fixture(scope="module")
def afa_file(original_layout, tmp_path_factory):
    """An AFA-style checkpoint of `mini`."""
    path = tmp_path_factory.mktemp("afa") / "checkpoint.pth"
    tensors = {f"module.encoder.{name}": tensor for name, tensor in original_layout(MINI).items()}
    tensors["module.classifier.weight"] = np.ones((3, 128, 1, 1), np.float32)
    torch.save({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, path)
    return path


def test_command_writes_our_safetensors(afa_file, tmp_path, capsys):
    target = tmp_path / "new" / "weights.safetensors"
    main([str(afa_file), str(target)])
    assert list(tmp_path.rglob("*.*")) == [target]
    expected = read_weights(afa_file)
    found = read_weights(target)
    assert (found.layout, found.left_out) == ("rml_jax", {})
    assert_same(found.weights, expected.weights)
    report = f"{afa_file} (original layout): {len(expected.weights)} parameters loaded\n"
    assert capsys.readouterr().out == f"{report}written: {target}\n"


def test_command_writes_a_folder_for_transformers(afa_file, tmp_path):
    main([str(afa_file), str(tmp_path / "model"), "--to=transformers"])
    model = SegformerModel.from_pretrained(tmp_path / "model", local_files_only=True)
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    found = layouts.from_foreign(tensors).weights
    expected = read_weights(afa_file).weights
    assert expected.keys() - found.keys() == {"classifier/kernel"}
    assert_same(found, {name: expected[name] for name in found})


def test_command_reads_what_it_wrote_for_transformers(afa_file, tmp_path):
    main([str(afa_file), str(tmp_path / "model"), "--to=transformers"])
    main([str(tmp_path / "model"), str(tmp_path / "weights.safetensors")])
    found, expected = (read_weights(path).weights for path in (tmp_path / "weights.safetensors", afa_file))
    assert_same(found, {name: expected[name] for name in found})


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refused(capsys, folder, *arguments):
    """The command's complaint, after status 2, with nothing written."""
    before = contents(folder)
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == 2
    assert contents(folder) == before
    out, err = capsys.readouterr()
    assert not out
    return err


@pytest.mark.parametrize("to", ["rml_jax", "transformers"])
def test_command_on_bad_input(to, original_layout, tmp_path, capsys):
    source, target = tmp_path / "weights.pth", tmp_path / "new" / "target"
    message = refused(capsys, tmp_path, source, target, f"--to={to}")
    assert message == f"error: {source}: No such file or directory, expected a file of weights\n"
    source.write_text("no weights")
    assert refused(capsys, tmp_path, source, target, f"--to={to}").startswith(f"error: {source}: expected a ")
    torch.save({name: torch.from_numpy(tensor) for name, tensor in original_layout(UNNAMED).items()}, source)
    message = refused(capsys, tmp_path, source, target, f"--to={to}")
    assert "depths (1, 1, 1, 2): expected one of b0, b1, b2, b3, b4, b5, mini" in message
    incomplete = {
        n: torch.from_numpy(tensor) for n, tensor in original_layout(MINI).items() if n != "norm2.bias"
    }
    torch.save(incomplete, source)
    message = refused(capsys, tmp_path, source, target, f"--to={to}")
    assert message.splitlines() == [
        f"error: {source} holds MiT-mini, incomplete or changed",
        "  missing: backbone/stages/1/norm/bias (64,)",
    ]


def test_command_on_a_bad_target(afa_file, tmp_path, capsys):
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("mine")
    folder.mkdir()
    for target, to in ((folder, "rml_jax"), (file / "x", "rml_jax"), (file, "transformers")):
        message = refused(capsys, tmp_path, afa_file, target, f"--to={to}")
        assert message.startswith(f"error: {target}")
        assert "expected" in message
    assert "--to" in refused(capsys, tmp_path, afa_file, file, "--to=tensorflow")


def test_target_on_a_full_disk(afa_file, tmp_path, capsys, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", fail)
    message = refused(capsys, tmp_path, afa_file, tmp_path / "target")
    assert message.startswith(f"error: {tmp_path / 'target'}: No space left on device")


def test_command_in_a_process_of_its_own(afa_file, tmp_path):
    command = [sys.executable, "-m", "rml_jax", "convert", "checkpoint.pth", str(tmp_path / "out")]
    root = str(Path(rml_jax.__file__).parents[1])
    done = subprocess.run(
        command, cwd=afa_file.parent, env={"PYTHONPATH": root}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("checkpoint.pth (original layout): ")
    assert done.stdout.endswith(f" parameters loaded\nwritten: {tmp_path / 'out'}\n")
    assert read_weights(tmp_path / "out").layout == "rml_jax"
