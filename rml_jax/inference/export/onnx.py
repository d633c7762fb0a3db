"""Export as a program for ONNX runtimes, by jax2onnx, which needs a separate environment (docs/inference.md)."""

import json

import jax
import jax.numpy as jnp
from jax import export

from rml_jax.inference.export.checksums import check_sums
from rml_jax.inference.export.program import describe, make_fixed_program
from rml_jax.utils.errors import UserError

FILES = PROGRAM, DESCRIPTION = "model.onnx", "model.json"
OUTPUTS = ("logits", "cams", "mask")


def write_program(folder, config, params, step, size):
    """Writes model.onnx and model.json, for any number of images of one size.

    Args:
      folder: pathlib.Path, an existing folder.
      config: ConfigDict of the run.
      params: nnx.State of `RML`.
      step: training step of the parameters.
      size: (height, width).

    Raises:
      UserError: if jax2onnx or onnxruntime is not installed.
    """
    try:
        import jax2onnx
        import onnx
        import onnxruntime  # noqa: F401  (to verify with)
    except ImportError as error:
        raise UserError(
            f"--format=onnx needs jax2onnx and onnxruntime ({error}): see docs/inference.md, they have an "
            "environment of their own"
        ) from error
    program = make_fixed_program(config, params)

    def ordered(images):
        outputs = program(images)
        return tuple(outputs[name] for name in OUTPUTS)

    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *size, 3), jnp.uint8)
    model = jax2onnx.to_onnx(
        ordered, [images], model_name="rml_jax", input_names=["images"], output_names=OUTPUTS
    )
    onnx.save(model, folder / PROGRAM)
    description = describe(config, step, *size)
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def read_program(folder):
    """Loads the program that `write_program` wrote, after checking the checksums; needs onnxruntime.

    Args:
      folder: pathlib.Path.

    Returns:
      Function of images, uint8 [B, height, width, 3], see `make_fixed_program`.

    Raises:
      UserError: if a file is missing or was changed.
    """
    import onnxruntime

    check_sums(folder, FILES)
    session = onnxruntime.InferenceSession(folder / PROGRAM, providers=["CPUExecutionProvider"])

    def run(images):
        return dict(zip(OUTPUTS, session.run(OUTPUTS, {"images": images}), strict=True))

    return run
