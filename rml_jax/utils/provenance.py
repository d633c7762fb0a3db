"""What a result came from: code, libraries and device."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

import jax

_PACKAGES = ("rml_jax", "jax", "jaxlib", "flax", "optax", "grain", "numpy", "pillow", "scikit-learn")


def versions():
    """Dict from the name of each library that may change a number to its version; Python's own with them."""
    return {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in _PACKAGES}


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
