#!/usr/bin/env bash
# jax 0.10.2, CPU.
# Expected: a comparison of a symbolic size with a number raises, as `<` may do, or is decided when the size is known.
# Seen: `x.shape[0] == 1` is False while the program is exported, without a warning, and the other branch is part of
#   the program for every size: "batch of 1: jitted 1.0, exported 2.0".
# Why it matters: models choose by such tests between paths for one image and for many, or skip a resize where sizes
#   are equal. The exported program then differs from the live model at just these sizes.
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
from jax import export


def choose(x):
    return x * 1.0 if x.shape[0] == 1 else x * 2.0


(batch,) = export.symbolic_shape("batch")
exported = export.export(jax.jit(choose))(jax.ShapeDtypeStruct((batch, 3), np.float32))
x = jnp.ones((1, 3))
live, stored = float(jax.jit(choose)(x)[0, 0]), float(exported.call(x)[0, 0])
print(f"batch of 1: jitted {live}, exported {stored}")
assert (live, stored) == (1.0, 2.0), "this has changed"
PYTHON
env/bin/python show.py
