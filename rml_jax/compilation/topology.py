"""Devices that programs can be compiled for without having them."""

import dataclasses
import difflib
import importlib.metadata
import os
import tomllib
from pathlib import Path

import jax
from jax.experimental import topologies

from rml_jax.utils.errors import UserError

_FILES = Path(__file__).parent / "devices"


@dataclasses.dataclass(frozen=True)
class Topology:
    """Described devices.

    Attributes:
      name: such as "v5e-8" or "h100".
      platform: "tpu" or "cuda".
      memory_bytes: memory of each device.
      bytes_per_second: bandwidth of that memory.
      bfloat16_flops_per_second: peak of each device.
      compiler: its package and version, such as "libtpu 0.0.42.1".
      devices: tuple of the devices, which compile and do nothing else.
    """

    name: str
    platform: str
    compiler: str
    memory_bytes: int
    bytes_per_second: float
    bfloat16_flops_per_second: float
    devices: tuple


def topology_names():
    """Returns the names that `open_topology` accepts, from the files in `devices/`."""
    return [name for chip in _chips() for name in chip["topologies"]]


def open_topology(name):
    """Loads the compiler for devices that need not be there.

    Args:
      name: one of `topology_names`.

    Returns:
      Topology.

    Raises:
      UserError: if the name is unknown, or the compiler is not installed or refuses.
    """
    chip = next((chip for chip in _chips() if name in chip["topologies"]), None)
    if chip is None:
        names = topology_names()
        near = difflib.get_close_matches(str(name), names, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"--topology={name}: expected one of {', '.join(names)}{hint}")
    kind, slice_ = chip["platform"], chip["topologies"][name]
    compiler = _compiler(name, kind)
    try:
        described = _describe(kind, slice_["grid"], chip.get("target"))
    except Exception as error:  # Each compiler has its own exception classes.
        raise UserError(f"--topology={name}: {first_line(error)}, expected a compiler for it") from error
    facts = {key: value for key, value in chip.items() if key not in ("topologies", "target")}
    devices = tuple(described.devices[: slice_["devices"]])
    return Topology(name, compiler=compiler, devices=devices, **facts)


def _chips():
    return [tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted(_FILES.glob("*.toml"))]


def _compiler(name, kind):
    """Returns a compiler's package and version."""
    package = {"tpu": "libtpu", "cuda": "jax-cuda13-plugin"}[kind]
    install = {
        "tpu": f"pip install libtpu 'jax[tpu]=={jax.__version__}'",
        "cuda": f"pip install --no-deps jax-cuda13-plugin=={jax.__version__} jax-cuda13-pjrt=={jax.__version__}",
    }[kind]
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f"--topology={name}: {package} is not installed, expected `{install}`") from error


def _describe(kind, grid, target):
    if kind == "tpu":
        # libtpu would ask the cloud's metadata server for its machine, and allow one process only.
        for key, value in (
            ("TPU_SKIP_MDS_QUERY", "1"),
            ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
            ("TPU_WORKER_HOSTNAMES", "localhost"),
        ):
            os.environ.setdefault(key, value)
        return topologies.get_topology_desc(platform="tpu", topology_name=grid)
    return topologies.get_topology_desc(platform="cuda", topology=grid, target_config=_text_proto(target))


def _text_proto(fields):
    """Writes a dict as a protocol buffer's text."""
    parts = []
    for name, value in fields.items():
        if isinstance(value, dict):
            parts.append(f"{name} {{ {_text_proto(value)} }}")
        else:
            parts.append(f'{name}: "{value}"' if isinstance(value, str) else f"{name}: {value}")
    return " ".join(parts)


def first_line(error):
    """Returns an exception's first line that is not empty, or its class."""
    return next(
        (line.strip()[:500] for line in str(error).splitlines() if line.strip()), type(error).__name__
    )
