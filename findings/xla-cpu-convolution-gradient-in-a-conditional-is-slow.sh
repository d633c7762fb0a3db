#!/usr/bin/env bash
# jax 0.10.2 on CPU (XLA's CPU backend).
# Expected: the branch of a lax.cond that is taken costs what the same code costs without the condition.
# Seen: a convolution's gradient for its kernel does not; a matrix product, its gradient and the convolution itself do:
#   "in a conditional, CPU time: convolution 1.0 times, its kernel's gradient 48 times, matrix product's gradient 1.0
#   times" (4x32x32x64, 3x3 kernel, float32). The script asks for 4.
# Why it matters: losses that begin after some steps, or steps that are skipped, are natural as a conditional around the
#   gradient. On a CPU the whole network then takes several times as long; two programs, chosen in Python, do not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > show.py <<'PYTHON'
import os
import time

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np

rng = np.random.default_rng(0)
x = rng.normal(size=(4, 32, 32, 64)).astype(np.float32)
kernel = rng.normal(size=(3, 3, 64, 64)).astype(np.float32)
matrix = rng.normal(size=(64, 256)).astype(np.float32)


def convolution(x, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)


def gradient(function):
    return lambda x, weights: jax.grad(lambda weights: jnp.sum(function(x, weights) ** 2))(weights)


def cpu_seconds(function, *arguments):
    start = time.process_time()
    jax.block_until_ready(function(*arguments))
    return time.process_time() - start


def ratio(function, weights):
    zeros = jnp.zeros_like(function(x, weights))
    straight = jax.jit(function)
    conditional = jax.jit(lambda taken, *both: jax.lax.cond(taken, lambda: function(*both), lambda: zeros))
    np.testing.assert_allclose(conditional(True, x, weights), straight(x, weights), rtol=1e-3, atol=1)
    return float(
        np.median(
            [cpu_seconds(conditional, True, x, weights) / cpu_seconds(straight, x, weights) for _ in range(7)]
        )
    )


found = {
    "convolution": ratio(convolution, kernel),
    "its kernel's gradient": ratio(gradient(convolution), kernel),
    "matrix product's gradient": ratio(gradient(jnp.matmul), matrix),
}
print("in a conditional, CPU time: " + ", ".join(f"{name} {times:.1f} times" for name, times in found.items()))
assert found["its kernel's gradient"] > 4, "it is no longer slow in a conditional"
assert found["convolution"] < 3 and found["matrix product's gradient"] < 3
PYTHON
env/bin/python show.py
