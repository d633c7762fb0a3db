"""Where results come from, also where the project is not installed."""

import importlib.metadata
import subprocess

import numpy as np
import pytest

import rml_jax
from rml_jax.utils import provenance


def test_versions_of_what_is_installed():
    versions = provenance.versions()
    assert versions["numpy"] == np.__version__
    assert versions["rml_jax"] == rml_jax.__version__


def test_packages_that_are_not_installed_are_left_out(monkeypatch):
    """As in a checkout that was never installed, and with fewer libraries."""
    version = importlib.metadata.version

    def hidden(name):
        if name in ("rml_jax", "rml-jax", "scikit-learn"):
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", hidden)
    versions = provenance.versions()
    assert versions["rml_jax"] == rml_jax.__version__
    assert "scikit-learn" not in versions
    assert versions["jax"] == version("jax")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git repository that seems to hold the package; its folder and a function that runs git in it."""
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    def git(*arguments):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    return tmp_path, git


def test_commit_says_whether_files_were_changed_since(checkout):
    folder, git = checkout
    git("init", "--quiet")
    (folder / "file").write_text("one")
    git("add", "file")
    git("commit", "--quiet", "--message=first")
    head = git("rev-parse", "HEAD")
    assert provenance.commit() == head
    (folder / "file").write_text("two")
    assert provenance.commit() == f"{head}-dirty"


def test_no_commit_outside_of_a_checkout(checkout):
    assert provenance.commit() is None
