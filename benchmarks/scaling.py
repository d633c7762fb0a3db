"""Communication between devices in one training step, read from the compiled program; projection to many devices.

    python -m benchmarks.scaling [--json FILE] [--variant mini] [--crop 64] [--batch 8] [--devices 1,2,4,8]

The step is compiled, not run, for simulated devices with the training loop's shardings (`rml_jax.training.sharding`).
Every collective is listed with its bytes. Only all-reduces are expected: of the gradients, with as many bytes as the
parameters, and of the losses, which are defined over the whole batch. All others are listed as unexpected.
`projection` is a calculation from published figures of chips, not a measurement.
Needs jax, flax and optax.
"""

import json
from typing import NamedTuple

from benchmarks import measure
from tests.e2e.collectives import step_on


class Chip(NamedTuple):
    """Published figures of an accelerator."""

    flops: float  # dense bfloat16 operations per second
    bandwidth: float  # bytes per second that a chip sends to its neighbours on the fast network
    domain: int  # chips on the fast network
    beyond: float  # bytes per second that a chip sends beyond it


CHIPS = {
    # 989 TFLOP/s; NVLink 900 GB/s both ways together; one 400 Gb/s network card a GPU between machines of 8.
    "H100 SXM": Chip(989e12, 450e9, 8, 50e9),
    # 197 and 459 TFLOP/s; interconnect of 1,600 and 4,800 Gb/s a chip, taken as both ways together; pods of 256
    # and more chips.
    "TPU v5e": Chip(197e12, 100e9, 256, 100e9),
    "TPU v5p": Chip(459e12, 300e9, 8960, 300e9),
}
_UTILISATIONS = (1.0, 0.4)
_CHIP_COUNTS = (8, 16, 32, 64, 128, 256)


def main():
    flags = measure.STEP | {"variant": "mini", "crop": 64, "batch": 8}
    # Nothing is timed, so the load does not matter.
    chosen, result = measure.start(busy=True, **flags, devices="1,2,4,8", images_per_chip=16)
    settings = json.dumps(result["settings"])
    result["steps"] = {count: step_on(count, settings) for count in chosen.devices.split(",")}
    step = next(iter(result["steps"].values()))
    flops = step["flops"] / chosen.batch
    result["projection"] = project(flops, step["parameter_bytes"], chosen.images_per_chip)
    measure.write_json(result, chosen.json)


def project(flops_per_image, gradient_bytes, images):
    """Calculates the time of a step's arithmetic and of its gradients' ring all-reduce on many chips.

    A ring sends 2 (n - 1) / n of the gradients from each chip; beyond the fast network, each chip's slower link
    carries its share of them, after the reduction within the domain. Overlap and latency are not modelled.

    Args:
      flops_per_image: floating-point operations of a step per image.
      gradient_bytes: size of the gradients.
      images: images of a step on each chip.

    Returns:
      Dict chip -> utilisation of its peak -> number of chips -> seconds of arithmetic and of the all-reduce, and the
      fraction of the arithmetic in their sum.
    """
    return {
        name: {
            f"{utilisation:.0%} of peak": {
                count: _projected(chip, count, utilisation, flops_per_image * images, gradient_bytes)
                for count in _CHIP_COUNTS
            }
            for utilisation in _UTILISATIONS
        }
        for name, chip in CHIPS.items()
    }


def _projected(chip, count, utilisation, flops, gradient_bytes):
    compute = flops / (chip.flops * utilisation)
    inner = min(count, chip.domain)
    outer = count / inner
    communicate = 2 * (inner - 1) / inner * gradient_bytes / chip.bandwidth
    communicate += 2 * (outer - 1) / outer * gradient_bytes / inner / chip.beyond
    return {
        "arithmetic_seconds": compute,
        "all_reduce_seconds": communicate,
        "efficiency": compute / (compute + communicate),
    }


if __name__ == "__main__":
    main()
