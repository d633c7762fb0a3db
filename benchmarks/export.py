"""Size and latency of a network's exports on this machine: jax, StableHLO through jax, ONNX through onnxruntime.

    python -m benchmarks.export [--json FILE] [--variant b0] [--size 320,320] [--scales 1] [--repeats 20]

All compute class logits, CAMs and a mask (stage `cam`) from one uint8 image, with random weights. `jax` is the
package's fixed-size function under jit, which is also exported to ONNX; `stablehlo` is the exported program for any
size, which pads its input. Timings alternate. Without jax2onnx and onnxruntime (docs/inference.md), the ONNX row is
left out.
"""

import importlib.util
import tempfile
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from benchmarks import measure
from configs import voc
from rml_jax.inference.export import onnx, stablehlo, weights
from rml_jax.inference.export.checksums import write_sums
from rml_jax.inference.export.program import make_fixed_program
from rml_jax.inference.export.verify import sample_images
from rml_jax.models import build
from rml_jax.utils.compilation_cache import use_compilation_cache
from tests.references.networks import random_network

WARM_UP = 3


def main():
    chosen, result = measure.start(variant="b0", size="320,320", scales="1", repeats=20)
    use_compilation_cache()
    size = tuple(map(int, chosen.size.split(",")))
    config = voc.get_config()
    config.model.variant = chosen.variant
    config.cam.scales = tuple(map(float, chosen.scales.split(",")))
    _, params = nnx.split(random_network(lambda: build.build_model(config, seed=0)))
    with tempfile.TemporaryDirectory() as folder:
        programs, result["bytes"] = _exports(Path(folder), config, params, size)
    images = sample_images(size)[1:2]
    calls = {
        name: lambda program=program: np.asarray(program(images)["mask"])
        for name, program in programs.items()
    }
    times = measure.interleave(calls, chosen.repeats, warm_up=WARM_UP)
    result["seconds"] = {name: measure.summary(seconds) for name, seconds in times.items()}
    measure.write_json(result, chosen.json)


def _exports(root, config, params, size):
    """Returns a dict from names to functions of images, and the sizes of the files in bytes."""
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


if __name__ == "__main__":
    main()
