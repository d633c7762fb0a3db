"""What a user's mistakes look like: one line that names the culprit, status 2, and nothing written."""

import ast
import importlib
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

import rml_jax
from rml_jax.__main__ import COMMANDS
from rml_jax.commands import cli
from rml_jax.config import load_config, save_config
from rml_jax.models import build
from rml_jax.training.loop import train
from rml_jax.utils.errors import Interrupted, UserError

ROOT = Path(rml_jax.__file__).parents[1]
DIGITS, ANIMALS = ROOT / "configs" / "digits.py", ROOT / "configs" / "voc_animals.py"


def contents(folder):
    """Every file below a folder with its bytes."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def error_of(folder, script, *arguments):
    """Runs a command in a folder that is not the project's. Returns its one line of complaint."""
    before = contents(folder)
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert contents(folder) == before, "nothing written"
    return done.stderr


# --- The commands. Each start takes seconds: what needs no command line is further below. ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([f"--config={DIGITS}", "--workdir=run", "--config.train.stepz=4"], ["train.stepz", "train.steps"]),
        (["--config=nothing.py", "--workdir=run"], ["nothing.py"]),
        ([f"--config={DIGITS}:fool", "--workdir=run"], ["'fool'", "full, baseline"]),
        (
            [f"--config={DIGITS}", "--workdir=run", "--config.train.steps=many"],
            ["config.train.steps", "many"],
        ),
        ([f"--config={DIGITS}"], ["--workdir"]),
        ([f"--config={ANIMALS}", "--workdir=run"], ["config.data.root is empty"]),
        (["--workdir=run", f"--config={DIGITS}", "config.train.steps=4"], ["'config.train.steps=4'"]),
        (["--wrkdir=run", f"--config={DIGITS}"], ["--wrkdir is no flag of rml-jax train", "--workdir"]),
    ],
    ids=[
        "unknown key",
        "no config file",
        "unknown variant",
        "wrong type",
        "no workdir",
        "no root",
        "no flag",
        "unknown flag",
    ],
)
def test_mistake_on_the_command_line_of_train(tmp_path, arguments, words):
    message = error_of(tmp_path, "train.py", *arguments)
    assert all(word in message for word in words), message


def test_training_on_a_broken_image(tmp_path, make_voc_folder):
    """The error comes from a thread that reads ahead, after the table of what the data holds."""
    files = make_voc_folder()
    path = files.image_path("train_002")
    path.write_bytes(path.read_bytes()[:200])
    settings = {
        "root": files.root,
        "class_names": "('cat','dog')",
        "mask_values": "(8,12)",
        "train_split": "train",
    }
    flags = [f"--config.data.{key}={value}" for key, value in settings.items()]
    command = [sys.executable, str(ROOT / "train.py"), f"--config={ANIMALS}", "--workdir=run", *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout.startswith("data: voc_animals, 2 classes\n")
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {path}: ")
    assert not (tmp_path / "run").exists()


def test_evaluation_of_a_missing_workdir(tmp_path):
    assert "run/config.json: No such file" in error_of(tmp_path, "eval.py", "--workdir=run")


def test_evaluation_of_missing_weights_with_a_config_file(tmp_path):
    flags = ["--weights=peer.pth", f"--config={DIGITS}:baseline", "--config.eval.pictures=1", "--workdir=run"]
    assert "peer.pth: No such file" in error_of(tmp_path, "eval.py", *flags)


def test_evaluation_on_an_unknown_split(tmp_path):
    save_config(runpy.run_path(DIGITS)["get_config"](), tmp_path / "config.json")
    message = error_of(tmp_path, "eval.py", f"--workdir={tmp_path}", "--split=test")
    assert "no split 'test': expected one of train, val" in message


def test_interrupted_command_says_so_and_exits_with_the_signals_status(capsys):
    @cli.command
    def work(arguments):
        raise Interrupted("stopped by SIGTERM after step 3", signal.SIGTERM)

    with pytest.raises(SystemExit) as caught:
        work([])
    assert caught.value.code == 143, "what a shell gives for a command that SIGTERM ended"
    assert capsys.readouterr().err == "stopped by SIGTERM after step 3\n"


def test_every_command_explains_its_own_flags_in_one_format(capsys):
    flags = {
        "train": {"--config", "--config.KEY", "--workdir"},
        "eval": {"--config", "--config.KEY", "--workdir", "--split", "--weights", "--masks", "--save_masks"},
        "predict": {"--workdir", "--out", "--stage", "--tags", "--save_cams", "--save_rle"},
        "export": {"--workdir", "--out", "--format", "--checkpoint"},
        "report": {"--workdir", "--out"},
        "prepare": set(),
        "inspect": {"--config", "--config.KEY", "--out", "--pairs"},
    }
    assert flags.keys() <= COMMANDS.keys()
    for name, (module, _) in COMMANDS.items():
        with pytest.raises(SystemExit) as stopped:
            importlib.import_module(module).main(["--help"])
        assert stopped.value.code == 0
        text = capsys.readouterr().out
        assert text.startswith(f"usage: rml-jax {name} ")
        assert flags.get(name, set()) <= set(re.findall(r"^  (--[\w.]+)", text, re.MULTILINE)), text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_an_unknown_flag_in_one_line(name, capsys):
    kind = ["voc"] if name == "prepare" else []
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(COMMANDS[name][0]).main([*kind, "--ouut=1"])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith(
        f"error: --ouut is no flag of rml-jax {' '.join([name, *kind])}: expected one such as --"
    )
    assert message.count("\n") == 1


# --- Configurations ---


def parsed(*arguments):
    parser = cli.Parser("rml-jax try")
    parser.add_config(without="digits")
    parser.add_argument("--workdir")
    parser.add_argument("rest", nargs="*")
    return parser.parse_config([*map(str, arguments)], default="digits")


def test_values_of_flags_and_keys_may_be_separate_words():
    joined = parsed("--workdir=run", "--config.train.steps=3", "--config.cam.flip=true", "photo")
    apart = parsed("--workdir", "run", "photo", "--config.train.steps", "3", "--config.cam.flip")
    assert joined[0] == apart[0]
    assert joined[1].to_dict() == apart[1].to_dict()
    assert (joined[1].train.steps, joined[1].cam.flip, joined[0].rest) == (3, True, ["photo"])
    assert parsed("--noconfig.augment.flip")[1].augment.flip is False


def test_keys_have_their_types_and_later_ones_win():
    config = parsed(
        "--config.cam.scales=(0.5,1.0)",
        "--config.loss.ciml=1",
        "--config.train.steps=3",
        "--config.train.steps=4",
    )[1]
    assert config.cam.scales == (0.5, 1.0)
    assert isinstance(config.loss.ciml, float)
    assert config.train.steps == 4


def test_configuration_by_name_by_file_and_with_a_variant():
    by_name = parsed("--config", "digits:baseline")[1]
    assert by_name.to_dict() == parsed(f"--config={DIGITS}:baseline", "--config.train.seed=0")[1].to_dict()
    assert by_name.to_dict() != parsed()[1].to_dict()


def test_saved_configuration_with_a_key_set(digits_config, tmp_path):
    digits_config.train.steps = 17
    save_config(digits_config, tmp_path / "config.json")
    parser = cli.Parser("rml-jax try")
    parser.add_config(without="the saved one")
    parser.add_argument("--workdir")
    _, config = parser.parse_config([f"--workdir={tmp_path}", "--config.eval.pictures=3"])
    assert (config.train.steps, config.eval.pictures) == (17, 3)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--config.train.steps", "--config.train.steps=VALUE"),
        ("--config.train.steps=x", "config.train.steps"),
        ("--config.trian.steps=1", "train.steps"),
        ("--config.train=1", "no configuration key"),
    ],
)
def test_keys_that_cannot_be_set(argument, words):
    with pytest.raises(UserError, match=words) as caught:
        parsed(argument)
    assert "\n" not in str(caught.value)


def test_hints_name_the_installed_command():
    """Who installed by pip has neither train.py nor configs/ in the current folder."""
    paths = re.compile(r"python (?:-m rml_jax|\w+\.py)|\b(?:train|eval)\.py|configs/\w+\.py")
    modules = (ROOT / "rml_jax").rglob("*.py")
    assert [f"{path}: {text}" for path in modules for text in printed(path) if paths.search(text)] == []


def printed(path):
    """The strings of a module, without docstrings where no command prints them."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    quiet = [] if path.parent.name == "commands" else [n.value for n in nodes if isinstance(n, ast.Expr)]
    return [
        n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str) and n not in quiet
    ]


# --- Training, without a command line ---


def refused(config, workdir):
    """The message with which `train` refuses, having written nothing."""
    before = contents(workdir)
    existed = workdir.exists()
    with pytest.raises(UserError) as caught:
        train(config, workdir)
    message = str(caught.value)
    assert "\n" not in message
    assert workdir.exists() == existed
    assert contents(workdir) == before
    return message


@pytest.fixture
def digits_config():
    return runpy.run_path(DIGITS)["get_config"]()


@pytest.fixture
def voc(make_voc_folder):
    """A VOC folder and a configuration for it whose first batch holds every image."""
    files = make_voc_folder()
    config = runpy.run_path(ANIMALS)["get_config"]()
    config.data.root = str(files.root)
    config.data.class_names, config.data.mask_values = files.class_names, files.mask_values
    config.data.train_split = "train"
    return files, config


def test_missing_image(voc, tmp_path):
    files, config = voc
    files.image_path("train_003").unlink()
    message = refused(config, tmp_path / "run")
    assert str(files.split_path("train")) in message
    assert str(files.image_path("train_003")) in message


def test_unknown_mask_value(voc, tmp_path):
    files, config = voc
    mask = files.read_stored_mask("train_001")
    mask[0, 0] = 77
    files.write_mask("train_001", mask)
    message = refused(config, tmp_path / "run")
    assert message.startswith(f"{files.mask_path('train_001')}: found mask value 77, expected")


def test_truncated_picture(voc, tmp_path):
    files, config = voc
    path = files.image_path("train_000")
    path.write_bytes(path.read_bytes()[:300])
    assert refused(config, tmp_path / "run").startswith(f"{path}: ")


def test_unknown_tag(voc, tmp_path):
    _, config = voc
    tags = tmp_path / "tags.csv"
    tags.write_text("image,tags\ntrain_000,cat\ntrain_001,cat|crocodile\n")
    config.data.tags = str(tags)
    assert refused(config, tmp_path / "run").startswith(f"{tags} line 3: found tag 'crocodile', expected")


def test_unknown_validation_split(voc, tmp_path):
    files, config = voc
    config.data.val_split = "test"
    assert str(files.split_path("test")) in refused(config, tmp_path / "run")


def test_masks_of_another_class_list(voc, tmp_path):
    _, config = voc
    config.data.mask_values = (8,)
    assert "mask_values is (8,): expected 2" in refused(config, tmp_path / "run")


def test_bad_value(digits_config, tmp_path):
    digits_config.train.crop_size = 4
    assert "config.train.crop_size is 4" in refused(digits_config, tmp_path / "run")


def test_scene_without_room_for_digits(digits_config, tmp_path):
    digits_config.data.scene.size = 32
    assert "config.data.scene.digit_size" in refused(digits_config, tmp_path / "run")


def test_weights_that_are_not_there(digits_config, tmp_path, monkeypatch):
    # They are read once the fresh network is there, which would take ten seconds for a real one.
    monkeypatch.setattr(build, "build_model", lambda config, seed: nnx.Linear(1, 1, rngs=nnx.Rngs(seed)))
    digits_config.model.init_from = str(tmp_path / "nothing.safetensors")
    assert refused(digits_config, tmp_path / "run").startswith(f"{tmp_path / 'nothing.safetensors'}: ")


def test_workdir_of_another_run(digits_config, tmp_path):
    save_config(digits_config, tmp_path / "config.json")
    digits_config.train.batch_size += 1
    digits_config.eval.batch_size += 1
    message = refused(digits_config, tmp_path)
    assert message.startswith(f"{tmp_path / 'config.json'} belongs to another run (train.batch_size is ")
    assert "eval." not in message, "settings of evaluation may change"
    assert load_config(tmp_path / "config.json").train.batch_size == digits_config.train.batch_size - 1


def test_workdir_with_a_broken_config(digits_config, tmp_path):
    (tmp_path / "config.json").write_text('{"train": ')
    assert refused(digits_config, tmp_path).startswith(f"{tmp_path / 'config.json'}: no valid JSON")


def test_workdir_that_is_a_file(digits_config, tmp_path):
    path = tmp_path / "run"
    path.write_bytes(np.arange(9).tobytes())
    assert f"{path} is a file" in refused(digits_config, path)
