"""Runs all GPU benchmarks, one after the other.

    python -m benchmarks.gpu --out FOLDER [--tiny]

Writes the result and the output of each run to FOLDER, as a JSON and a log file. The load is checked once, before the
first run. Failed runs are listed at the end and do not stop the others. `--tiny` uses small settings, to test the
script on a CPU. Needs jax, flax and optax, and for the peers torch and transformers (`pydensecrf2` for the peer's
CRF); peers that are not installed are left out.
"""

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import measure

BATCHES = (8, 16)
# In float32, both frameworks use TF32 for matrix products and convolutions.
DTYPES = ("float32", "bfloat16")
_TINY = {
    "train_step": "--variant mini --crop 64 --repeats 2",
    "inference": "--variant mini --shrink 4 --repeats 2",
    "compile": "--variant mini --crop 64",
}


def main():
    chosen = measure.parse(required=["out"], out=Path, tiny=False)
    chosen.out.mkdir(parents=True, exist_ok=True)
    failed = [name for name, command in runs(chosen.tiny).items() if not _run(name, command, chosen.out)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; their output is in {chosen.out}")


def runs(tiny):
    """Returns the runs, as a dict from name to command line after `python -m benchmarks.`.

    Args:
      tiny: whether to use small settings.
    """
    peers = all(importlib.util.find_spec(package) for package in ("torch", "transformers"))
    step, masks = ("ours,eager,compile", "ours,peer") if peers else ("ours", "ours")
    batches = (2,) if tiny else BATCHES
    found = {
        f"train_step-{dtype}-{batch}": f"train_step --batch {batch} --dtype {dtype} --contestants {step}"
        for batch in batches
        for dtype in DTYPES
    }
    for dtype in DTYPES:
        command = f"inference --batch {batches[-1]} --dtype {dtype} --contestants {masks}"
        found[f"inference-{dtype}"] = command
    found["compile"] = f"compile --batch {batches[-1]} --dtype bfloat16"
    return {name: f"{command} {_TINY[command.split()[0]] if tiny else ''}" for name, command in found.items()}


def _run(name, command, out):
    print(f"{name} ...", end=" ", flush=True)
    begin = time.monotonic()
    module, *arguments = command.split()
    command = [
        sys.executable,
        "-m",
        f"benchmarks.{module}",
        *arguments,
        "--busy",
        "--json",
        out / f"{name}.json",
    ]
    with (out / f"{name}.log").open("w", encoding="utf-8") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    print(f"{'failed' if done.returncode else 'done'} after {time.monotonic() - begin:.0f} s", flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    main()
