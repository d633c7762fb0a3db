"""What all benchmarks share: where they ran, how repeats are taken, how results are written."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys

import numpy as np

from rml_jax.utils.files import atomic_write

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "array_record",
    "grain",
    "jax2onnx",
    "numpy",
    "onnxruntime",
    "pillow",
    "pydensecrf2",
    "simplejpeg",
    "torch",
    "transformers",
)


def environment():
    """Where and with what a benchmark runs.

    Returns:
      Dict for JSON: command, commit (None outside of a git checkout), device, cores, load at the start, versions.
    """
    import jax

    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "command": " ".join(["python -m", _module_name(), *sys.argv[1:]]),
        "commit": _commit(),
        "device": _processor() if jax.default_backend() == "cpu" else jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "tunables": os.environ.get("GLIBC_TUNABLES", ""),
        "versions": versions,
    }


def interleave(functions, repeats):
    """Times functions in turns, A B A B, so that a machine's drift falls on all of them alike.

    Args:
      functions: dict from names to functions without arguments that return the seconds of one repeat.
      repeats: how often each is called.

    Returns:
      Dict from names to lists of seconds.
    """
    seconds = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            seconds[name].append(function())
    return seconds


def summary(seconds):
    """Median, quartiles and number of repeats of a list of seconds, as a dict for JSON."""
    low, median, high = np.percentile(seconds, [25, 50, 75])
    return {"median": float(median), "quartiles": [float(low), float(high)], "repeats": len(seconds)}


def write_json(result, path):
    """Prints a result and writes it to `path` (pathlib.Path or None)."""
    text = json.dumps(result, indent=2)
    print(text)
    if path:
        atomic_write(path, text + "\n")


def _module_name():
    return getattr(sys.modules["__main__"].__spec__, "name", "benchmarks")


def _commit():
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()


def _processor():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return f"CPU, {names[0] if names else platform.machine()}"
