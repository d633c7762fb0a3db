"""Every benchmark that wants a GPU, one after the other.

    python -m benchmarks.gpu --out FOLDER [--tiny]

Writes one JSON file a run into FOLDER, and what a run printed beside it. A run that fails is named at the end and
does not stop the others. `--tiny` makes all of them small, to try the harness on a CPU. Needs jax, flax and optax,
and for the peers torch and transformers (`pydensecrf2` for the peer's CRF); peers not installed are left out.
"""

import argparse
import importlib.util
import subprocess
import sys
import time
from pathlib import Path

BATCHES = (8, 16)
# In float32, both frameworks take TF32 for matrix products and convolutions.
DTYPES = ("float32", "bfloat16")
_TINY = {
    "train_step": ["--variant", "mini", "--crop", "64", "--repeats", "2"],
    "inference": ["--variant", "mini", "--shrink", "4", "--repeats", "2"],
    "compile": ["--variant", "mini", "--crop", "64"],
}


def main():
    parser = argparse.ArgumentParser("python -m benchmarks.gpu")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    failed = [name for name, command in runs(chosen.tiny) if not _run(name, command, chosen.out)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; what they printed is in {chosen.out}")


def runs(tiny):
    """The runs, as a list of (name, [module, arguments ...]).

    Args:
      tiny: whether to make them small.
    """
    peers = all(importlib.util.find_spec(package) for package in ("torch", "transformers"))
    contestants = "ours,eager,compile" if peers else "ours"
    found = []
    for batch in (2,) if tiny else BATCHES:
        for dtype in DTYPES:
            arguments = ["--batch", str(batch), "--dtype", dtype, "--contestants", contestants]
            found.append((f"train_step-{dtype}-{batch}", ["train_step", *arguments]))
    for dtype in DTYPES:
        arguments = ["--batch", "2" if tiny else "16", "--dtype", dtype]
        arguments += ["--contestants", "ours,peer" if peers else "ours"]
        found.append((f"inference-{dtype}", ["inference", *arguments]))
    found.append(("compile", ["compile", "--batch", "2" if tiny else "16", "--dtype", "bfloat16"]))
    return [(name, [*command, *(_TINY[command[0]] if tiny else [])]) for name, command in found]


def _run(name, command, out):
    module, *arguments = command
    print(f"{name} ...", end=" ", flush=True)
    begin = time.monotonic()
    with (out / f"{name}.log").open("w", encoding="utf-8") as log:
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{module}", *arguments, "--json", out / f"{name}.json"],
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    print(f"{'failed' if done.returncode else 'done'} after {time.monotonic() - begin:.0f} s", flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    main()
