"""Prints the parity table: every component, its independent reference and the largest difference.

python -m tests.references [--out docs/parity.md] [--fast]
"""

import argparse
import os
import platform
import sys
from pathlib import Path

import jax
import numpy as np
import sklearn
import torch
import transformers

from rml_jax.utils.files import atomic_write
from rml_jax.utils.progress import Progress
from tests.references.checks import CHECKS

_HEAD = """# Parity with independent references

Written by `{command}`.

Every component of rml_jax is compared with an independent reference. The table shows the largest difference found.
The same measurements are tests (`make test`; MiT-b2 to b5: `make test-slow`).

Differences are relative unless the component says otherwise: the largest absolute difference of an array over the
largest absolute value of the reference, and the worst of all arrays and cases of a row. All parameters are random,
norms and biases included.

- {versions}
- CPU ({machine}); float32 in both; jax_default_matmul_precision {jax_precision} (float32 products on a CPU),
  torch.get_float32_matmul_precision() {torch_precision}, no reduced-precision or fast-math flags (XLA_FLAGS {flags}).
"""


def main():
    parser = argparse.ArgumentParser("python -m tests.references", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="Markdown file to write; printed in any case")
    parser.add_argument("--fast", action="store_true", help="without the slow checks (MiT-b2 to b5)")
    chosen = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    checks = [check for check in CHECKS if not (chosen.fast and check.slow)]
    progress = Progress("parity", len(checks), "checks")
    rows = []
    for done, check in enumerate(checks, 1):
        rows += check.measure()
        progress.update(done, check.name)
    table = _head() + "\n" + _table(rows)
    print(table)
    if chosen.out:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(chosen.out, table)
    worse = [row.component for row in rows if not row.difference <= row.tolerance]
    if worse:
        sys.exit(f"beyond its tolerance: {'; '.join(worse)}")


def _head():
    versions = {
        "Python": platform.python_version(),
        "jax": jax.__version__,
        "NumPy": np.__version__,
        "PyTorch": torch.__version__,
        "transformers": transformers.__version__,
        "scikit-learn": sklearn.__version__,
    }
    return _HEAD.format(
        command=" ".join(["python -m tests.references", *sys.argv[1:]]),
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
        machine=f"{os.cpu_count()} cores, {platform.machine()}",
        jax_precision=jax.config.jax_default_matmul_precision,
        torch_precision=torch.get_float32_matmul_precision(),
        flags=os.environ.get("XLA_FLAGS", "unset"),
    )


def _table(rows):
    lines = ["| component | reference | largest difference | tolerance |", "|---|---|---|---|"]
    lines += [f"| {r.component} | {r.reference} | {r.difference:.1e} | {r.tolerance:.0e} |" for r in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
