#!/usr/bin/env bash
# jax 0.10.2 on CPU (XLA's CPU backend).
# Expected: the grouped convolution, which XLA knows as one operation, is at least as fast as its nine shifted
#   products written out.
# Seen: a 3x3 depthwise convolution by lax.conv_general_dilated with feature_group_count = channels takes more than
#   ten times the CPU time, forward: "forward 18.0 times the CPU time" (2x64x64x128, float32). The script asks for 4.
# Why it matters: every block of SegFormer, MobileNet and ConvNeXt has a depthwise convolution, and it decides how long
#   training and tests take on a CPU.
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


def grouped(x, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel[:, :, None], (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=x.shape[-1]
    )


def shifted(x, kernel):
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(padded[:, i : i + height, j : j + width] * kernel[i, j] for i in range(3) for j in range(3))


def cpu_seconds(function, *arguments):
    function = jax.jit(function)
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(5):
        start = time.process_time()
        jax.block_until_ready(function(*arguments))
        times.append(time.process_time() - start)
    return min(times)


rng = np.random.default_rng(0)
x = jnp.asarray(rng.normal(size=(2, 64, 64, 128)), jnp.float32)
kernel = jnp.asarray(rng.normal(size=(3, 3, 128)), jnp.float32)
np.testing.assert_allclose(grouped(x, kernel), shifted(x, kernel), atol=1e-4)
ratio = cpu_seconds(grouped, x, kernel) / cpu_seconds(shifted, x, kernel)
print(f"forward {ratio:.1f} times the CPU time")
assert ratio > 4, "the grouped convolution is no longer slow"
PYTHON
env/bin/python show.py
