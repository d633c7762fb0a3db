#!/usr/bin/env bash
# jax 0.10.2, four simulated CPU devices.
# Expected: where the batch axis of [views, batch, height, width, channels] is split over devices, jax.vmap over the
#   views leaves it split: a convolution needs nothing from other images.
# Seen: vmap merges its own axis with the batch for the convolution, views first, and the partitioner gathers the whole
#   batch on every device. With the batch as the first axis nothing is exchanged:
#   "views first: 1 all-gather; images first: 0".
# Why it matters: contrastive and mutual learning pass several views of an image. The order of two axes decides whether
#   every device computes on its part of the batch or on all of it, and results are the same either way.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > show.py <<'PYTHON'
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))


def gathers(shape, axes):
    """The number of all-gathers in the compiled convolution of views, mapped over the first axis."""

    def convolve(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.vmap(
            lambda view: jax.lax.conv_general_dilated(view, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        )(x)

    x = jax.ShapeDtypeStruct(shape, np.float32, sharding=NamedSharding(mesh, PartitionSpec(*axes)))
    kernel = jax.ShapeDtypeStruct((3, 3, 3, 8), np.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    return jax.jit(convolve).lower(x, kernel).compile().as_text().count("all-gather(")


views_first = gathers((2, 8, 16, 16, 3), (None, "data"))
images_first = gathers((8, 2, 16, 16, 3), ("data",))
print(f"views first: {views_first} all-gather; images first: {images_first}")
assert views_first >= 1 and images_first == 0, "this has changed"
PYTHON
env/bin/python show.py
