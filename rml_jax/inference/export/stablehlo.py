"""Export as a StableHLO program (`jax.export`), which runs without flax and this package."""

import json

import jax
import jax.numpy as jnp
from jax import export

from rml_jax.inference.export.checksums import check_sums
from rml_jax.inference.export.program import describe, make_program
from rml_jax.utils.errors import UserError

FILES = PROGRAM, DESCRIPTION = "model.stablehlo", "model.json"
PLATFORMS = ("cpu", "cuda", "tpu")
KNOWN_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def write_program(folder, config, params, step, platforms=PLATFORMS):
    """Writes model.stablehlo and model.json.

    Batch, height and width are symbolic: one file takes all sizes from `smallest_side` in model.json upwards.

    Args:
      folder: pathlib.Path, an existing folder.
      config: ConfigDict of the run.
      params: nnx.State of `RML`.
      step: training step of the parameters.
      platforms: names of the platforms that the program is to run on.

    Raises:
      UserError: for an unknown platform, which jax.export itself accepts.
    """
    for platform in platforms:
        if platform not in KNOWN_PLATFORMS:
            raise UserError(f"platform {platform!r}: expected some of {', '.join(KNOWN_PLATFORMS)}")
    description = describe(config, step, "height", "width")
    smallest = description["smallest_side"]
    sides = export.symbolic_shape(
        "batch, height, width", constraints=[f"height >= {smallest}", f"width >= {smallest}"]
    )
    images = jax.ShapeDtypeStruct((*sides, 3), jnp.uint8)
    exported = export.export(jax.jit(make_program(config, params)), platforms=platforms)(images)
    (folder / PROGRAM).write_bytes(exported.serialize())
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def read_program(folder):
    """Loads the program that `write_program` wrote, after checking the checksums.

    Args:
      folder: pathlib.Path.

    Returns:
      Function of images, uint8 [B, H, W, 3], see `make_program`; to be jitted.

    Raises:
      UserError: if a file is missing or was changed.
    """
    check_sums(folder, FILES)
    try:
        return export.deserialize(bytearray((folder / PROGRAM).read_bytes())).call
    except Exception as error:  # flatbuffers and XLA have their own exception classes.
        raise UserError(f"{folder / PROGRAM}: {error}, expected a program of jax.export") from error
