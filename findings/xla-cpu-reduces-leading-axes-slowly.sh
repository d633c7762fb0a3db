#!/usr/bin/env bash
# jax 0.10.2 on CPU (XLA's CPU backend).
# Expected: the mean or maximum over the first axis of an array takes the time of adding its parts one after the other,
#   since both read every number once.
# Seen: XLA hands the reduction to its YNNPACK library, which takes tens of times as long: "sum 76 times, max 22 times
#   (CPU time)". With the compiler option that leaves only matrix products to the library, or with the parts added in
#   a Python loop, it is as fast as memory allows. Reductions over the last axis are not affected.
# Why it matters: statistics over neighbours, scales, views or an ensemble are reductions over a leading axis of whole
#   maps. The standard deviation and softmax over 48 neighbours in pixel-adaptive refinement took most of its time.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > show.py <<'PYTHON'
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

maps = jnp.asarray(np.random.default_rng(0).random((48, 1, 320, 480)), jnp.float32)


def cpu_seconds(function):
    function(maps).block_until_ready()
    seconds = []
    for _ in range(7):
        begin = time.process_time()
        function(maps).block_until_ready()
        seconds.append(time.process_time() - begin)
    return statistics.median(seconds)


ratios = {}
for name, reduction, pair in [("sum", jnp.sum, jnp.add), ("max", jnp.max, jnp.maximum)]:
    whole = jax.jit(functools.partial(reduction, axis=0))
    parts = jax.jit(lambda x, pair=pair: functools.reduce(pair, list(x)))
    np.testing.assert_allclose(whole(maps), parts(maps), rtol=1e-5)
    ratios[name] = cpu_seconds(whole) / cpu_seconds(parts)
print(", ".join(f"{name} {ratio:.0f} times" for name, ratio in ratios.items()), "(CPU time)")
assert min(ratios.values()) > 5, "reductions over the first axis are faster now"
PYTHON
env/bin/python show.py
