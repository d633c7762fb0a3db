"""What a result came from: code, libraries and device."""

import contextlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import jax

import rml_jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "numpy", "pillow", "scikit-learn")


def versions():
    """Returns the versions of what may change a number, by name; packages that are not installed are left out.

    The project's own version is the code's, not the installed package's: a checkout need not be installed.
    """
    found = {"python": platform.python_version(), "rml_jax": rml_jax.__version__}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def commit():
    """This code's git commit, with "-dirty" where files were changed since; None outside of a git checkout."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def devices():
    """This process's devices, such as "2 x NVIDIA H100"."""
    local = jax.local_devices()
    return f"{len(local)} x {local[0].device_kind}"
