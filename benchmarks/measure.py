"""Shared functions of the benchmarks: arguments, the environment, interleaved timing, and results as JSON."""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rml_jax.utils import provenance
from rml_jax.utils.files import atomic_write

MAX_LOAD = 0.5
STEP = {"variant": "b1", "batch": 2, "crop": 320, "dtype": ("float32", "mixed", "bfloat16")}
"""Flags of the benchmarks of the training step."""

_PEERS = ["array_record", "jax2onnx", "onnxruntime", "pydensecrf2", "simplejpeg", "torch", "transformers"]


class Seconds(NamedTuple):
    """Wall time and CPU time of all threads of the process. The wall clock is the same in all processes (Linux)."""

    wall: float
    cpu: float

    @classmethod
    def now(cls):
        return cls(time.monotonic(), time.process_time())

    def since(self, begin):
        return Seconds(self.wall - begin.wall, self.cpu - begin.cpu)


def parse(*, required=(), busy=False, **defaults):
    """Parses the flags of the module that runs. Exits if the load is above MAX_LOAD, unless `--busy` is given.

    Args:
      required: names of the flags that must be given.
      busy: default of `--busy`.
      **defaults: the other flags, with their default values. A tuple lists the choices, the default first; a type is
        that of a flag without a default.

    Returns:
      argparse.Namespace of the flags.
    """
    main = sys.modules["__main__"]
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        f"python -m {main.__spec__.name}", description=main.__doc__, formatter_class=raw
    )
    message = f"measure although the load is above {MAX_LOAD}"
    parser.add_argument("--busy", action="store_true", default=busy, help=message)
    for name, value in defaults.items():
        if isinstance(value, bool):
            options = {"action": "store_true"}
        elif isinstance(value, tuple):
            options = {"choices": value, "default": value[0]}
        else:
            options = {"type": value} if isinstance(value, type) else {"type": type(value), "default": value}
        parser.add_argument(f"--{name.replace('_', '-')}", required=name in required, **options)
    chosen = parser.parse_args()
    load = os.getloadavg()[0]
    if load > MAX_LOAD and not chosen.busy:
        message = f"the load is {load:.2f}, expected at most {MAX_LOAD}; --busy measures anyway"
        parser.exit(2, f"{parser.prog}: error: {message}\n")
    return chosen


def start(**defaults):
    """Parses the flags, with `--json`, and starts the result.

    Args:
      **defaults: see `parse`.

    Returns:
      argparse.Namespace, and a dict with `environment` and `settings`, in which paths are replaced by their flags.
    """
    chosen = parse(json=Path, **defaults)
    settings = {name: value for name, value in vars(chosen).items() if name not in ("json", "busy")}
    settings = {name: f"--{name}" if isinstance(value, Path) else value for name, value in settings.items()}
    return chosen, {"environment": environment(), "settings": settings}


def environment():
    """Returns command, commit (None outside of a git checkout), device, cores, load and versions, as a dict."""
    import jax

    versions = provenance.versions()
    for package in _PEERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    module = getattr(sys.modules["__main__"].__spec__, "name", "benchmarks")
    return {
        "command": " ".join(["python -m", module, *sys.argv[1:]]),
        "commit": provenance.commit(),
        "device": _processor() if jax.default_backend() == "cpu" else jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "tunables": os.environ.get("GLIBC_TUNABLES", ""),
        "versions": versions,
    }


def timed(function):
    """Calls a function without arguments and returns its Seconds."""
    begin = Seconds.now()
    function()
    return Seconds.now().since(begin)


def interleave(functions, repeats, *, warm_up=0, timer=timed):
    """Times functions in alternation, A B A B, so that a drift of the machine affects all of them equally.

    Args:
      functions: dict from names to functions without arguments.
      repeats: number of timed calls of each.
      warm_up: number of untimed calls of each before them.
      timer: calls a function and returns its Seconds.

    Returns:
      Dict from names to lists of Seconds.
    """
    seconds = {name: [] for name in functions}
    for repeat in range(warm_up + repeats):
        for name, function in functions.items():
            taken = timer(function)
            if repeat >= warm_up:
                seconds[name].append(taken)
    return seconds


def summary(values):
    """Returns median, quartiles and number of values as a dict for JSON; of Seconds, `cpu_median` as well."""
    first, *cpu = np.transpose(values) if isinstance(values[0], (tuple, list)) else [values]
    low, median, high = np.percentile(first, [25, 50, 75])
    result = {"median": float(median), "quartiles": [float(low), float(high)], "repeats": len(values)}
    return result | ({"cpu_median": float(np.median(cpu))} if cpu else {})


def peak_resident_bytes():
    """Returns this process's largest resident size so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def call_in_new_process(module, function, *arguments, **environment):
    """Calls a function in a new process.

    Args:
      module, function: names; the function takes strings and prints its result as JSON.
      *arguments: strings, its arguments.
      **environment: environment variables, in addition to those of this process.

    Returns:
      The result, parsed from JSON.
    """
    program = f"import sys; from {module} import {function}; {function}(*sys.argv[1:])"
    command = [sys.executable, "-c", program, *arguments]
    options = {"cwd": Path(__file__).parents[1], "env": os.environ | environment}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, **options)
    return json.loads(done.stdout)


def write_json(result, path):
    """Prints a result and writes it to `path` (pathlib.Path or None)."""
    text = json.dumps(result, indent=2)
    print(text)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, text + "\n")


def _processor():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return f"CPU, {names[0] if names else platform.machine()}"
