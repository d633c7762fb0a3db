"""What devices say to each other in one training step, read from the compiled program, and what that means for many.

    python -m benchmarks.scaling [--json FILE] [--variant mini] [--crop 64] [--batch 8] [--devices 1,2,4,8]

The step is compiled, not run, for simulated devices with the shardings of `rml_jax.training.sharding`, which are the
training loop's. Every collective is listed with what it moves. Expected are all-reduces alone: of the gradients, as
many bytes as there are parameters, and of the losses, which are defined over the whole batch. Everything else is
listed as unexpected. `projection` is a calculation from published figures of chips, not a measurement.
Needs jax, flax and optax.
"""

import argparse
import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

from benchmarks import measure

KINDS = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
# Tags and labels of a batch may travel; activations may not.
_SMALL = 4096


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of an accelerator.

    Attributes:
      flops: dense bfloat16 operations a second.
      bandwidth: bytes a second that a chip sends to its neighbours on the fast network.
      domain: chips on the fast network.
      beyond: bytes a second that a chip sends beyond it.
    """

    flops: float
    bandwidth: float
    domain: int
    beyond: float


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
    parser = argparse.ArgumentParser("python -m benchmarks.scaling")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--variant", default="mini")
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8, help="over all devices")
    parser.add_argument("--devices", default="1,2,4,8")
    parser.add_argument("--images-per-chip", type=int, default=16, help="of the projection")
    chosen = parser.parse_args()
    settings = {name: value for name, value in vars(chosen).items() if name != "json"}
    result = {"environment": measure.environment(), "settings": settings}
    result["steps"] = {count: _compiled_on(int(count), settings) for count in chosen.devices.split(",")}
    step = next(iter(result["steps"].values()))
    result["projection"] = project(
        step["flops"] / chosen.batch, step["parameter_bytes"], chosen.images_per_chip
    )
    measure.write_json(result, chosen.json)


def _compiled_on(count, settings):
    """Runs `compiled_step` in a new process with so many simulated devices; what it prints."""
    program = "import sys; from benchmarks.scaling import compiled_step; compiled_step(sys.argv[1])"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(settings)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def compiled_step(settings):
    """Prints as JSON what the compiled step of all losses moves between the devices of this process.

    Args:
      settings: JSON of variant, crop and batch.
    """
    import jax
    from flax import nnx

    from benchmarks.contestants import settings as shared
    from rml_jax.models import RML
    from rml_jax.training import sharding
    from rml_jax.training.optimizer import make_optimizer
    from rml_jax.training.step import TrainState, make_train_step

    chosen = json.loads(settings)
    config = shared.network_config(chosen["variant"])
    mesh = sharding.make_mesh(chosen["batch"])
    graphdef, params = nnx.split(nnx.eval_shape(lambda: RML(config, rngs=nnx.Rngs(0))))
    optimizer = make_optimizer(shared.optimizer_config(), params)
    state = jax.eval_shape(
        lambda params: TrainState(jax.numpy.int32(0), params, optimizer.init(params), jax.random.key(0)),
        params,
    )
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), state)
    batch = sharding.shard(shared.make_batch(chosen["batch"], chosen["crop"]), mesh)
    step = sharding.jit_train_step(make_train_step(graphdef, optimizer, shared.step_config()))
    lowered = step.lower(state, batch, mutual=True)
    compiled = lowered.compile()
    found = collectives(compiled.as_text())
    results = jax.tree.leaves(compiled.output_shardings)
    print(
        json.dumps(
            {
                "parameter_bytes": sum(
                    math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(params)
                ),
                # Of the whole batch, before partitioning; the body of a loop is counted once.
                "flops": lowered.cost_analysis()["flops"],
                "state_stays_replicated": all(one.is_fully_replicated for one in results),
                "bytes": {kind: sum(one["bytes"] for one in found if one["kind"] == kind) for kind in KINDS},
                "executions": sum(one["executions"] for one in found),
                "expected": [one for one in found if not _unexpected(one)],
                "unexpected": [one for one in found if _unexpected(one)],
            }
        )
    )


def _unexpected(one):
    return one["executions"] > one["count"] or (one["kind"] != "all-reduce" and one["bytes"] > _SMALL)


def collectives(program):
    """The collectives of a compiled program, those of one kind and origin taken together.

    Args:
      program: text of an optimised HLO module.

    Returns:
      List of dicts: kind; operation, the JAX operation it stems from; count, how often it stands in the program;
      executions, how often it is run, loops considered; bytes, the size of its results over all executions.
    """
    lines = _computations(program)
    runs = _executions(lines)
    found = {}
    for name, body in lines.items():
        for line in body:
            match = re.search(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(", line)
            if not match or name not in runs:
                continue
            operation = re.search(r'op_name="([^"]*)"', line)
            # Combined collectives name all of their origins; one tells enough.
            origin = re.split(r"[:(]*reduce_sum:", operation[1])[0][:100] if operation else ""
            one = found.setdefault(
                (match[2], origin),
                {"kind": match[2], "operation": origin, "count": 0, "executions": 0, "bytes": 0},
            )
            one["count"] += 1
            one["executions"] += runs[name]
            one["bytes"] += runs[name] * _bytes(match[1])
    return sorted(found.values(), key=lambda one: -one["bytes"])


def _computations(program):
    """The lines of each computation, by name; the entry's name is ""."""
    computations, lines = {}, []
    for line in program.splitlines():
        start = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if start:
            lines = computations["" if start[1] else start[2]] = []
        else:
            lines.append(line)
    return computations


def _executions(computations):
    """How often each computation that the entry reaches is run."""
    runs = {}

    def visit(name, times):
        runs[name] = runs.get(name, 0) + times
        for line in computations[name]:
            loop = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            for kind, called in re.findall(r"(body|to_apply|calls|branch_computations)=\{?%([\w.-]+)", line):
                visit(called, times * (int(loop[1]) if loop and kind == "body" else 1))

    visit("", 1)
    return runs


_SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "f64": 8}


def _bytes(shapes):
    """Bytes of a shape such as "f32[2,3]{1,0}" or a tuple of them."""
    parts = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    return sum(_SIZES[kind] * math.prod(int(n) for n in sizes.split(",") if n) for kind, sizes in parts)


def project(flops_per_image, gradient_bytes, images):
    """Calculates the time of a step's arithmetic and of its gradients' ring all-reduce on many chips.

    A ring sends 2 (n - 1) / n of the gradients from each chip; beyond the fast network, each chip's slower link
    carries its share of them (the reduction in the domain comes first). No overlap is counted, no latency either.

    Args:
      flops_per_image: arithmetic of a step per image.
      gradient_bytes: size of the gradients.
      images: of a step on each chip.

    Returns:
      Dict chip -> utilisation of its peak -> number of chips -> seconds of arithmetic and of the all-reduce, and the
      share of the arithmetic in their sum.
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
