#!/usr/bin/env bash
# orbax-checkpoint 0.12.8 with flax 0.12.8 and jax 0.10.2.
# Expected: the elements of an nnx.List come back in their order.
# Seen: nnx's pure state numbers them with integers. Restored without a target the keys are strings, and their order,
#   also jax.tree.leaves's, is that of strings: "saved 0 1 2 3 4 5 6 7 8 9 10 11, restored 0 1 10 11 2 3 4 5 6 7 8 9".
#   A plain Python list keeps its order.
# Why it matters: blocks of a stage have the same shapes. From 11 blocks in a list on (MiT-b3 has 18 in a stage),
#   code that lines up leaves builds a wrong network without an error; smaller networks do not show it.
#   nnx.restore_int_paths turns the keys into integers again.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet flax==0.12.8 orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > show.py <<'PYTHON'
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx


class Network(nnx.Module):
    def __init__(self):
        self.blocks = nnx.List([nnx.Param(np.full(1, index, np.float32)) for index in range(12)])


def order(tree):
    return [int(leaf[0]) for leaf in jax.tree.leaves(tree)]


state = nnx.to_pure_dict(nnx.state(Network()))
checkpointer = ocp.StandardCheckpointer()
checkpointer.save(Path("checkpoint").resolve(), state)
checkpointer.wait_until_finished()
restored = checkpointer.restore(Path("checkpoint").resolve())
print(f"saved {' '.join(map(str, order(state)))}, restored {' '.join(map(str, order(restored)))}")
assert order(nnx.restore_int_paths(restored)) == order(state) == list(range(12))
assert order(restored) == sorted(range(12), key=str), "the order has changed"
PYTHON
env/bin/python show.py
