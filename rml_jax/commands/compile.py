"""Compile a configuration's programs for a GPU or TPU that need not be there: does it compile, and does it fit?

Everything printed is the compiler's estimate for one device; nothing runs. docs/accelerators.md explains the columns.
"""

import dataclasses
import json
from pathlib import Path

import jax

from rml_jax import compilation
from rml_jax.commands import cli
from rml_jax.data.sources import with_class_names
from rml_jax.utils import provenance
from rml_jax.utils.errors import UserError
from rml_jax.utils.files import atomic_write
from rml_jax.validate import check_config

_COLUMNS = (
    ("compile, s", "compile_seconds", 1),
    ("program, MiB", "program_bytes", 2**20),
    ("arguments, MiB", "argument_bytes", 2**20),
    ("temporaries, MiB", "temporary_bytes", 2**20),
    ("GFLOP", "flops", 1e9),
    ("bytes moved, GB", "bytes_moved", 1e9),
    ("bytes sliced, GB", "bytes_sliced", 1e9),
)


@cli.command
def main(arguments=None):
    """Runs the command."""
    parser = cli.Parser("rml-jax compile", description=__doc__)
    parser.add_config(without="voc")
    parser.add_argument("--topology", required=True, help="one of " + ", ".join(compilation.topology_names()))
    names = ",".join(compilation.PROGRAMS)
    parser.add_argument("--programs", default=names, help="some of %(default)s, which is the default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument(
        "--dump", type=Path, metavar="FOLDER", help="write the optimised programs' texts, NAME.txt"
    )
    parser.add_argument(
        "--largest_batch", action="store_true", help="search the largest batch that fits; one compile per try"
    )
    chosen, config = parser.parse_config(arguments, default="voc")
    programs = _programs(chosen.programs)
    config = with_class_names(config)
    check_config(config)
    # The described devices come from a compiler; a GPU or TPU of this machine must not be occupied.
    jax.config.update("jax_platforms", "cpu")
    topology = compilation.open_topology(chosen.topology)
    for flag, path in (("json", chosen.json and chosen.json.parent), ("dump", chosen.dump)):
        _check_folder(flag, path)
    # A program from the cache would have no compile time.
    jax.config.update("jax_enable_compilation_cache", False)
    print(_headline(config, topology), flush=True)
    found = compilation.compile_config(config, topology, programs, chosen.dump, _print_program)
    result = _result(config, topology, found)
    if chosen.largest_batch:
        result["largest_batch_per_device"] = compilation.largest_batch(config, topology, _print_try)
        print(f"largest batch that fits: {result['largest_batch_per_device']} images per device")
    if chosen.json:
        _write(chosen.json, json.dumps(result, indent=2) + "\n")


def _programs(text):
    programs = text.split(",")
    for name in programs:
        if name not in compilation.PROGRAMS:
            raise UserError(
                f"--programs={text}: {name!r} is no program, expected some of {', '.join(compilation.PROGRAMS)}"
            )
    return programs


def _check_folder(flag, path):
    """Makes the folder of a file that is written after minutes of compiling."""
    if path is None:
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--{flag}: {path}: {error.strerror}, expected a folder to write to") from error


def _write(path, content):
    try:
        atomic_write(path, content)
    except OSError as error:
        raise UserError(f"--json={path}: {error.strerror}, expected a file to write") from error


def _headline(config, topology):
    count = len(topology.devices)
    return (
        f"{topology.name}: {count} device{'s' if count > 1 else ''} of {topology.memory_bytes / 2**30:.1f} GiB; "
        f"{config.model.variant}, batch {config.train.batch_size}, crop {config.train.crop_size}, "
        f"{config.model.dtype}; compiler's estimates per device, nothing has run"
    )


def _print_program(name, result):
    print(f"{name}: {_describe(result)}", flush=True)


def _print_try(images, result):
    print(f"{images} images per device: {_describe(result)}", flush=True)


def _describe(result):
    if "error" in result:
        return f"does not compile: {result['error']}"
    parts = [
        f"{title} {'-' if result[key] is None else format(result[key] / unit, ',.1f')}"
        for title, key, unit in _COLUMNS
    ]
    parts += [
        f"{kind} {counted['count']} ({counted['bytes'] / 1e6:,.1f} MB)"
        for kind, counted in sorted((result["collectives"] or {}).items())
    ]
    return "; ".join(parts) + ("; fits" if result["fits"] else "; does not fit")


def _result(config, topology, found):
    described = dataclasses.asdict(dataclasses.replace(topology, devices=()))
    return {
        "topology": described | {"devices": len(topology.devices)},
        "settings": {
            "variant": config.model.variant,
            "batch_size": config.train.batch_size,
            "crop_size": config.train.crop_size,
            "dtype": config.model.dtype,
            "eval_batch_size": config.eval.batch_size,
            "canvas": list(config.eval.canvases[0]),
        },
        "versions": provenance.versions(),
        "programs": found,
    }
