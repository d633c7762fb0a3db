#!/usr/bin/env bash
# jax 0.10.2 on CPU (XLA's CPU backend).
# Expected: a function that compiles in bfloat16, and under jax.vmap in float32, compiles under jax.vmap in bfloat16.
# Seen: a scan over shifted windows (the gradient of a depthwise kernel) does not:
#   "plain float32: compiles; plain bfloat16: compiles; vmap float32: compiles; vmap bfloat16: JaxRuntimeError
#   INTERNAL: RET_CHECK failure (...) Failed to translate module to LLVM IR."
# Why it matters: a training that works on an accelerator in bfloat16 cannot be tested on a CPU, and the message names
#   no line of the program. Casting to float32 before the loop avoids it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > show.py <<'PYTHON'
import jax
import jax.numpy as jnp


def kernel_gradient(x, gradient):
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def at(_, place):
        window = jax.lax.dynamic_slice(padded, (0, place[0], place[1], 0), x.shape)
        return None, jnp.sum(window * gradient, axis=(0, 1, 2), dtype=jnp.float32)

    places = jnp.asarray([(i, j) for i in range(3) for j in range(3)])
    return jax.lax.scan(at, None, places)[1]


def outcome(function, x):
    try:
        jax.jit(function).lower(x, x).compile()
    except jax.errors.JaxRuntimeError as error:
        return f"{type(error).__name__} {str(error).splitlines()[0]}"
    return "compiles"


x = jnp.ones((4, 2, 12, 12, 16))
found = {}
for dtype in ("float32", "bfloat16"):
    found[f"plain {dtype}"] = outcome(kernel_gradient, x[0].astype(dtype))
    found[f"vmap {dtype}"] = outcome(jax.vmap(kernel_gradient), x.astype(dtype))
for name, result in found.items():
    print(f"{name}: {result}")
failed = [name for name, result in found.items() if result != "compiles"]
assert failed == ["vmap bfloat16"], "this has changed"
PYTHON
env/bin/python show.py
