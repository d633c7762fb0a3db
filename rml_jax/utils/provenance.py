"""Records what produced a result: code, libraries and devices."""

import contextlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import jax

import rml_jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "numpy", "pillow", "scikit-learn")


def versions():
    """Returns the versions of Python, rml_jax and the libraries that may change a result, by name.

    Libraries that are not installed are left out. The version of rml_jax is that of the code, which need not be
    installed.
    """
    found = {"python": platform.python_version(), "rml_jax": rml_jax.__version__}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def commit():
    """Returns the git commit of the code, with "-dirty" if files have changed since; None outside a git checkout."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def devices():
    """Returns the devices of this process, such as "2 x NVIDIA H100"."""
    local = jax.local_devices()
    return f"{len(local)} x {local[0].device_kind}"
