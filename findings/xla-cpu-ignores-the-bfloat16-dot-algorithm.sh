#!/usr/bin/env bash
# jax 0.10.2 on CPU (XLA's CPU backend); 0.12.0.1 does the same.
# Expected: a product with the precision `jax.lax.DotAlgorithmPreset.BF16_BF16_F32` rounds its operands to bfloat16
#   and sums in float32, as its documentation says and as it does on GPUs, or is refused where that can't be done.
# Seen: it compiles, the program's text says algorithm=dot_bf16_bf16_f32, and the result is that of float32
#   operands, bit for bit: "largest difference to float32 0, to rounded operands 0.2". It is also no faster. Operands
#   that are converted to bfloat16 in the program are rounded.
# Why it matters: a segmentation network whose precision is set by `jax.default_matmul_precision` gives other CAMs on
#   a CPU than on a GPU, and a test of low precision that runs on a CPU tests nothing. For bfloat16 products on a CPU,
#   convert the operands.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > show.py <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

rng = np.random.default_rng(0)
a = rng.standard_normal((1600, 320)).astype(np.float32)
b = rng.standard_normal((320, 1280)).astype(np.float32)


@jax.jit
def by_algorithm(a, b):
    return jnp.dot(a, b, precision=jax.lax.DotAlgorithmPreset.BF16_BF16_F32)


@jax.jit
def of_rounded(a, b):
    return jnp.dot(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16), preferred_element_type=jnp.float32)


assert "algorithm=dot_bf16_bf16_f32" in by_algorithm.lower(a, b).compile().as_text()
result = by_algorithm(a, b)
to_float32 = float(np.abs(result - jax.jit(jnp.dot)(a, b)).max())
to_rounded = float(np.abs(result - of_rounded(a, b)).max())
print(f"largest difference to float32 {to_float32:.0e}, to rounded operands {to_rounded:.1g}")
assert to_float32 == 0 and to_rounded > 0.05, "XLA treats the algorithm in another way now"
PYTHON
env/bin/python show.py
