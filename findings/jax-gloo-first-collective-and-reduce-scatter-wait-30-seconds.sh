#!/usr/bin/env bash
# jax 0.10.2 on CPU, two processes (jax.distributed, gloo).
# Expected: a collective waits for the slower process, as long as --xla_cpu_collective_timeout_seconds says.
# Seen: with that flag at 3600 and one process 40 seconds late, an all-reduce waits, but two do not: the first
#   collective of a run, which makes the connection, and every reduce-scatter: "psum: waited 40 s; psum_scatter:
#   ValueError after 30 s, Gloo ReduceScatter failed: ... Read timeout; psum, the first of the run: JaxRuntimeError
#   after 30 s, Gloo context initialization failed: DEADLINE_EXCEEDED".
# Why it matters: processes that compile or read data for different times lose a whole training at its first step, or,
#   where gradients are summed by reduce-scatter, at any later one. The flag does not reach these two.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > process.py <<'PYTHON'
"""Runs one of two processes, of which the second is late for the collective: process.py NAME FIRST RANK PORT."""

import os
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

LATE = 40


def scatter(x):
    return jax.lax.psum_scatter(x, "data", scatter_dimension=0, tiled=True)


def reduce(x):
    return jax.lax.psum(x, "data")


name, is_first, rank, port = sys.argv[1], sys.argv[2] == "first", int(sys.argv[3]), sys.argv[4]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank)
mesh, split = jax.make_mesh((2,), ("data",)), PartitionSpec("data")
function = {"psum": reduce, "psum_scatter": scatter}[name]
function = jax.shard_map(function, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
x = jax.make_array_from_callback((4,), NamedSharding(mesh, split), lambda index: np.arange(4.0)[index])
program = jax.jit(function).lower(x).compile()
if not is_first:
    program(x).block_until_ready()
Path(f"ready-{port}-{rank}").touch()
while not Path(f"ready-{port}-{1 - rank}").exists():
    time.sleep(0.05)
if rank == 1:
    time.sleep(LATE)
start = time.monotonic()
try:
    program(x).block_until_ready()
    outcome = "waited {:.0f} s"
except Exception as error:
    outcome = f"{type(error).__name__} after {{:.0f}} s, {str(error).splitlines()[0][:120]}"
if rank == 0:
    Path(f"outcome-{port}").write_text(outcome.format(time.monotonic() - start))
    time.sleep(LATE / 4)  # The other one ends first.
os._exit(0)
PYTHON
cat > show.py <<'PYTHON'
import os
import socket
import subprocess
import sys
from pathlib import Path

CASES = [("psum", "later"), ("psum_scatter", "later"), ("psum", "first")]
os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_cpu_collective_timeout_seconds=3600"}


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


ports = [free_port() for _ in CASES]
processes = [
    subprocess.Popen(
        [sys.executable, "process.py", *case, rank, port], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for case, port in zip(CASES, ports)
    for rank in "01"
]
for process in processes:
    process.wait()
outcomes = [Path(f"outcome-{port}").read_text() for port in ports]
for (name, when), outcome in zip(CASES, outcomes):
    print(f"{name}{', the first of the run' if when == 'first' else ''}: {outcome}")
assert outcomes[0].startswith("waited")
assert "ReduceScatter failed" in outcomes[1], "reduce-scatter waits now"
assert "initialization failed" in outcomes[2], "the first collective waits now"
PYTHON
env/bin/python show.py
