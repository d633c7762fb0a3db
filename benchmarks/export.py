"""Size and latency of a network's exports on this machine: jax, StableHLO through jax, ONNX through onnxruntime.

    python -m benchmarks.export [--json FILE] [--variant b0] [--size 320,320] [--scales 1] [--repeats 20]

All do the same: one picture, uint8 in, class logits, CAMs and a mask out (stage `cam`), weights at random. `jax` is
the fixed-size function of this package, jitted, and what the ONNX file was made of; `stablehlo` the exported program
for any size, which pads inside. They take turns. Without jax2onnx and onnxruntime (docs/inference.md) the ONNX row is
left out.
"""

import argparse
import importlib.util
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from benchmarks import measure
from configs import voc
from rml_jax.inference.export import onnx, stablehlo, weights
from rml_jax.inference.export.checksums import write_sums
from rml_jax.inference.export.program import make_fixed_program
from rml_jax.inference.export.verify import sample_pictures
from rml_jax.models import build
from rml_jax.utils.compilation_cache import use_compilation_cache
from tests.references.networks import random_network

WARM_UP = 3


def main():
    parser = argparse.ArgumentParser("python -m benchmarks.export")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--variant", default="b0")
    parser.add_argument("--size", default="320,320", help="height,width")
    parser.add_argument("--scales", default="1", help="of the multi-scale CAM, each with its mirror")
    parser.add_argument("--repeats", type=int, default=20)
    chosen = parser.parse_args()
    use_compilation_cache()
    size = tuple(map(int, chosen.size.split(",")))
    config = voc.get_config()
    config.model.variant = chosen.variant
    config.cam.scales = tuple(map(float, chosen.scales.split(",")))
    _, params = nnx.split(random_network(lambda: build.build_model(config, seed=0)))
    with tempfile.TemporaryDirectory() as folder:
        programs, sizes = _exports(Path(folder), config, params, size)
    images = sample_pictures(size)[1:2]
    result = {
        "environment": measure.environment(),
        "settings": {name: value for name, value in vars(chosen).items() if name != "json"},
        "bytes": sizes,
    }
    for program in programs.values():
        for _ in range(WARM_UP):
            _seconds(program, images)
    times = measure.interleave(
        {name: lambda program=program: _seconds(program, images) for name, program in programs.items()},
        chosen.repeats,
    )
    result["seconds"] = {name: measure.summary(seconds) for name, seconds in times.items()}
    measure.write_json(result, chosen.json)


def _exports(root, config, params, size):
    """Dict from names to functions of images, and the sizes of the files in bytes."""
    programs = {"jax": jax.jit(make_fixed_program(config, params))}
    writers = {
        "safetensors": (weights, lambda folder: weights.write_model(folder, config, params, 0)),
        "stablehlo": (stablehlo, lambda folder: stablehlo.write_program(folder, config, params, 0)),
    }
    if importlib.util.find_spec("jax2onnx"):
        writers["onnxruntime"] = onnx, lambda folder: onnx.write_program(folder, config, params, 0, size)
    sizes = {}
    for name, (module, write) in writers.items():
        folder = root / name
        folder.mkdir()
        write(folder)
        write_sums(folder, module.FILES)
        sizes[name] = (folder / module.FILES[0]).stat().st_size
        if name == "stablehlo":
            programs[name] = jax.jit(stablehlo.read_program(folder))
        elif name == "onnxruntime":
            programs[name] = onnx.read_program(folder)
    return programs, sizes


def _seconds(program, images):
    begin = time.perf_counter()
    outputs = program(images)
    np.asarray(outputs["mask"])
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
