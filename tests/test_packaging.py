"""The wheel: what is in it, and that its command starts where there is no checkout."""

import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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
    assert capsys.readouterr().err.startswith("error: 'fly' is no command, expected one of train, eval,")


def test_command_gets_its_own_arguments(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["rml-jax", "report", f"--workdir={tmp_path / 'none'}"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert f"{tmp_path / 'none' / 'config.json'}: No such file" in capsys.readouterr().err
