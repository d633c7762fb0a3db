#!/usr/bin/env bash
# jax 0.10.2 on CPU (XLA's CPU backend).
# Expected: jax.nn.gelu(x, approximate=False) costs what 0.5 x (1 + erf(x / sqrt 2)) costs, which is the same function.
# Seen: it is written with erfc, whose two branches are both computed: "1.8 times the CPU time; greatest difference
#   4.8e-07" (4x80x80x256, float32). The script asks for 1.3.
# Why it matters: the exact GELU stands behind every hidden layer of a vision transformer. Where the CPU counts, the
#   line with erf halves its time; only far to the left of 0 do the two differ in relative terms.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > show.py <<'PYTHON'
import time

import jax
import jax.numpy as jnp
import numpy as np


@jax.jit
def by_erfc(x):
    return jax.nn.gelu(x, approximate=False)


@jax.jit
def by_erf(x):
    return 0.5 * x * (1 + jax.lax.erf(x * np.float32(0.5**0.5)))


def cpu_seconds(function, x):
    start = time.process_time()
    function(x).block_until_ready()
    return time.process_time() - start


x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 80, 80, 256)), jnp.float32)
difference = float(jnp.abs(by_erfc(x) - by_erf(x)).max())
ratios = [cpu_seconds(by_erfc, x) / cpu_seconds(by_erf, x) for _ in range(15)]
ratio = float(np.median(ratios))
print(f"{ratio:.1f} times the CPU time; greatest difference {difference:.1e}")
assert difference < 1e-5 and ratio > 1.3, "erfc is no longer slower"
PYTHON
env/bin/python show.py
