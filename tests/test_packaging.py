"""The wheel and its command where there is no checkout; a checkout where no wheel is installed."""

import configparser
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import rml_jax
from rml_jax.__main__ import COMMANDS, main

ROOT = Path(rml_jax.__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The built wheel, from a copy: building leaves traces in the source folder."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(
        ROOT, folder / "source", ignore=shutil.ignore_patterns(".*", "runs", "docs", "tests", "build")
    )
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "wheel", folder / "source", *options, "--wheel-dir", folder]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_wheel_holds_the_package_and_the_configurations_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [path for path in (ROOT / "rml_jax").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    configs = {f"rml_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert names == {str(path.relative_to(ROOT)) for path in files} | configs


def test_wheel_has_licence_notice_command_and_dependencies(wheel):
    archive = zipfile.ZipFile(wheel)
    about = {name.split(".dist-info/")[1]: name for name in archive.namelist() if ".dist-info/" in name}
    assert archive.read(about["licenses/LICENSE"]) == (ROOT / "LICENSE").read_bytes()
    assert "licenses/NOTICE" in about
    entries = configparser.ConfigParser()
    entries.read_string(archive.read(about["entry_points.txt"]).decode())
    assert dict(entries["console_scripts"]) == {"rml-jax": "rml_jax.__main__:main"}
    metadata = archive.read(about["METADATA"]).decode()
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        assert line.startswith("#") or f"Requires-Dist: {line}\n" in metadata


def test_command_of_the_wheel_knows_the_configurations(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    command = [sys.executable, "-m", "rml_jax", "train", "--config=nothing", "--workdir=run"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    names = ", ".join(sorted(path.stem for path in (ROOT / "configs").glob("*.py")))
    assert done.stderr == (
        f"error: --config=nothing: no such file, expected FILE[:VARIANT] or one of {names}\n"
    )


def test_one_version_everywhere(wheel):
    assert wheel.name.startswith(f"rml_jax-{rml_jax.__version__}-")
    assert f"\nversion: {rml_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_checkout_that_was_never_installed_does_everything(tmp_path):
    """In an environment that has what requirements.txt names, but not rml_jax itself."""
    environment, run = tmp_path / "venv", tmp_path / "run"
    venv.create(environment, symlinks=True)
    (site,) = environment.glob("lib/python*/site-packages")
    # The packages of this environment, except the project where it is installed.
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "rml_jax" not in path.name:
            (site / path.name).symlink_to(path)
    shutil.copytree(
        ROOT,
        tmp_path / "checkout",
        ignore=shutil.ignore_patterns(".*", "runs", "docs", "tests", "build", "*.egg-info"),
    )

    def start(*arguments):
        command = [environment / "bin/python", *arguments]
        variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            command, cwd=tmp_path / "checkout", env=variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    probe = (
        "import importlib.metadata as m; print([d.name for d in m.distributions() if d.name == 'rml_jax'])"
    )
    found = subprocess.run(
        [environment / "bin/python", "-c", probe], capture_output=True, text=True, check=True
    )
    assert found.stdout == "[]\n"
    few = [f"--config.data.num_{split}=4" for split in ("train", "val")]
    steps = ["--config.train.steps=2", "--config.train.batch_size=2", "--config.log.pictures_every=0"]
    start("train.py", "--config=digits_small", f"--workdir={run}", *steps, *few)
    start("eval.py", f"--workdir={run}", "--config.eval.stages=('cam',)", "--config.eval.pictures=1")
    Image.new("RGB", (40, 40), "gray").save(tmp_path / "photo.png")
    start(
        "-m",
        "rml_jax",
        "predict",
        f"--workdir={run}",
        f"--out={tmp_path / 'masks'}",
        "--stage=cam",
        tmp_path / "photo.png",
    )
    start(
        "-m", "rml_jax", "export", f"--workdir={run}", f"--out={tmp_path / 'model'}", "--format=safetensors"
    )
    start("-m", "rml_jax", "report", f"--workdir={run}")
    versions = json.loads((run / "eval" / "metrics.json").read_text())["versions"]
    assert versions["rml_jax"] == rml_jax.__version__
    assert {path.name for path in (tmp_path / "masks" / "masks").iterdir()} == {"photo.png"}
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert (run / "report.html").is_file()


def test_every_command_has_a_module():
    for module, _ in COMMANDS.values():
        path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
        assert "\ndef main(" in path.read_text(encoding="utf-8"), module


def test_commands_are_listed_and_others_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rml-jax"])
    main()
    listed = capsys.readouterr().out
    assert all(f"\n  {name} " in listed for name in COMMANDS)
    monkeypatch.setattr(sys, "argv", ["rml-jax", "fly"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: 'fly' is not a command, expected one of train, eval,")


def test_command_gets_its_own_arguments(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["rml-jax", "report", f"--workdir={tmp_path / 'none'}"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert f"{tmp_path / 'none' / 'config.json'}: No such file" in capsys.readouterr().err
