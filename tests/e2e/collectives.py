"""Communication between devices in one training step, read from the compiled program."""

import json
import math
import os
import re

from benchmarks import measure

KINDS = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
# Bytes: a batch's tags and labels may be exchanged, activations may not.
_SMALL = 4096


def step_on(count, settings):
    """Returns the output of `compiled_step` in a new process with simulated devices.

    Args:
      count: number of devices.
      settings: see `compiled_step`.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    call = ("tests.e2e.collectives", "compiled_step", settings)
    return measure.call_in_new_process(*call, XLA_FLAGS=flags, JAX_PLATFORMS="cpu")


def compiled_step(settings):
    """Prints as JSON the communication of the compiled step with all losses on the devices of this process.

    Args:
      settings: JSON of variant, crop, batch and dtype.
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

    def make_model():
        return RML(config, dtype=jax.numpy.dtype(chosen["dtype"]), rngs=nnx.Rngs(0))

    mesh = sharding.make_mesh(chosen["batch"])
    graphdef, params = nnx.split(nnx.eval_shape(make_model))
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
    record = {
        "parameter_bytes": sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(params)),
        # Of the whole batch, before partitioning; the body of a loop is counted once.
        "flops": lowered.cost_analysis()["flops"],
        "state_stays_replicated": all(one.is_fully_replicated for one in results),
        "bytes": {kind: sum(one["bytes"] for one in found if one["kind"] == kind) for kind in KINDS},
        "executions": sum(one["executions"] for one in found),
        "expected": [one for one in found if not _unexpected(one)],
        "unexpected": [one for one in found if _unexpected(one)],
    }
    print(json.dumps(record))


def _unexpected(one):
    return one["executions"] > one["count"] or (one["kind"] != "all-reduce" and one["bytes"] > _SMALL)


def collectives(program):
    """Lists the collectives of a compiled program, grouped by kind and origin.

    Args:
      program: text of an optimised HLO module.

    Returns:
      List of dicts: kind; operation, the JAX operation it comes from; count, its number in the program; executions,
      its number of executions, with loops; bytes, the size of its results over all executions.
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
            # Combined collectives list all of their origins; the first is kept.
            origin = re.split(r"[:(]*reduce_sum:", operation[1])[0][:100] if operation else ""
            fresh = {"kind": match[2], "operation": origin, "count": 0, "executions": 0, "bytes": 0}
            one = found.setdefault((match[2], origin), fresh)
            one["count"] += 1
            one["executions"] += runs[name]
            one["bytes"] += runs[name] * _bytes(match[1])
    return sorted(found.values(), key=lambda one: -one["bytes"])


def _computations(program):
    """Returns the lines of each computation, by name; the entry's name is ""."""
    computations, lines = {}, []
    for line in program.splitlines():
        start = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if start:
            lines = computations["" if start[1] else start[2]] = []
        else:
            lines.append(line)
    return computations


def _executions(computations):
    """Counts the executions of each computation that the entry reaches."""
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
    """Returns the bytes of a shape such as "f32[2,3]{1,0}" or a tuple of them."""
    parts = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    return sum(_SIZES[kind] * math.prod(int(n) for n in sizes.split(",") if n) for kind, sizes in parts)
