#!/usr/bin/env bash
# safetensors 0.8.0 with numpy 2.4.6.
# Expected: load_file(save_file(x)) returns x, or save_file refuses x.
# Seen: a transposed (not contiguous) array is written in the order of its memory under its new shape. The values
#   come back scrambled, without an error: "written [[0, 3], [1, 4], [2, 5]], read [[0, 1], [2, 3], [4, 5]]".
# Why it matters: conversion between PyTorch's and JAX's layouts transposes every kernel. Exported weights are then
#   of the right shape and wrong. numpy.ascontiguousarray before saving avoids it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet safetensors==0.8.0 numpy==2.4.6
cat > show.py <<'PYTHON'
import numpy as np
from safetensors.numpy import load_file, save_file

kernel = np.arange(6, dtype=np.float32).reshape(2, 3).T
save_file({"as is": kernel, "contiguous": np.ascontiguousarray(kernel)}, "weights.safetensors")
read = load_file("weights.safetensors")
print(f"written {kernel.astype(int).tolist()}, read {read['as is'].astype(int).tolist()}")
assert np.array_equal(read["contiguous"], kernel)
assert read["as is"].shape == kernel.shape and not np.array_equal(read["as is"], kernel), "no longer scrambled"
PYTHON
env/bin/python show.py
