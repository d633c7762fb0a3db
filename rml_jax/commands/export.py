"""Export a trained network to a new folder, as files for other programs.

The export is read back and compared with the live model. If it differs, or anything fails, the folder is removed.
"""

import functools
import json
import shutil
import tempfile
from pathlib import Path

import jax

from rml_jax.commands import cli
from rml_jax.inference.export import onnx, stablehlo, weights
from rml_jax.inference.export.card import CARD, METRICS, model_card, read_metrics
from rml_jax.inference.export.checksums import write_sums
from rml_jax.inference.export.program import with_own_precision
from rml_jax.inference.export.verify import verify
from rml_jax.inference.predictor import load_model, predictor_of
from rml_jax.models import build
from rml_jax.stages.canvas import smallest_side
from rml_jax.utils import hub
from rml_jax.utils.compilation_cache import use_compilation_cache
from rml_jax.utils.errors import UserError

FORMATS = ("safetensors", "stablehlo", "onnx")

_CONTENT = {
    "safetensors": "Weights and configuration: `rml_jax.load(FOLDER)` reads them.",
    "stablehlo": "A program for `jax.export.deserialize`; it takes images of any size. `model.json` describes it.",
    "onnx": "A program for ONNX runtimes; `model.json` describes its inputs and outputs.",
}


@cli.command
def main(arguments=None):
    """Runs the command."""
    parser = cli.Parser("rml-jax export", description=__doc__)
    parser.add_argument("--workdir", required=True, help="folder of a run, or an exported model")
    parser.add_argument("--out", required=True, type=Path, help="folder to write; must not exist")
    parser.add_argument(
        "--format", required=True, choices=FORMATS, help="docs/inference.md describes the files"
    )
    parser.add_argument("--checkpoint", help="newest, best or a step; the run's eval.checkpoint by default")
    parser.add_argument("--push", metavar="USER/MODEL", help="upload the folder to the Hugging Face hub, too")
    parser.add_argument(
        "--licence",
        default="other",
        help="licence of the model in the hub's card, one of the hub's identifiers; %(default)s by default",
    )
    chosen = parser.parse_args(arguments)
    use_compilation_cache()
    differences = export(chosen.workdir, chosen.out, chosen.format, chosen.checkpoint, chosen.licence)
    print("largest differences from the live model:")
    for name, difference in differences.items():
        print(f"  {name:8}{difference:.2e}")
    print(f"written: {chosen.out}")
    if chosen.push:
        print(f"uploaded: {hub.push(chosen.out, chosen.push, CARD)}")


def export(workdir, out, form, checkpoint=None, licence="other"):
    """Writes an exported folder.

    Args:
      workdir, checkpoint: see `rml_jax.load`.
      out: pathlib.Path of the folder.
      form: one of FORMATS.
      licence: the hub's identifier of the model's licence, for the model card.

    Returns:
      Dict from "scores", "cams" and "mask" to the largest difference from the live model (`verify`).

    Raises:
      UserError: if there is no model, `out` exists or can't be written, or the export differs from the model.
    """
    if out.exists():
        raise UserError(f"--out={out}: exists already, expected the name of a new folder")
    config, params, step = load_model(Path(workdir), checkpoint)
    reference, contrast = config, None
    if form != "safetensors":  # Programs have their own precision and one background score for all images.
        reference, contrast = with_own_precision(config), 0.0
    live = predictor_of(reference, params, stage="cam", region_contrast=contrast)
    metrics = read_metrics(Path(workdir))
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        # In the same folder as `out`, so that it can be renamed.
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.absolute().parent))
    except OSError as error:
        raise UserError(f"--out={out}: {error.strerror}, expected a folder to write to") from error
    try:
        exported, sizes = _write(form, folder, config, params, step, config.eval.canvases)
        differences = verify(live, exported, sizes)
        card = model_card(config, step, metrics, differences, _CONTENT[form], licence)
        (folder / CARD).write_text(card, encoding="utf-8")
        if form == "safetensors" and metrics:
            (folder / METRICS).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        folder.chmod(0o755)  # mkdtemp and safetensors restrict access to the owner.
        for path in folder.iterdir():
            path.chmod(0o644)
        folder.rename(out)
    except OSError as error:
        raise UserError(f"--out={out}: {error.strerror}, expected a folder to write to") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return differences


def _write(form, folder, config, params, step, canvases):
    """Writes the files of a format with their checksums.

    Returns:
      The function read back from them, and the sizes of the images to compare on, for `verify`.
    """
    largest = max(canvases, key=lambda canvas: canvas[0] * canvas[1])
    if form == "safetensors":
        weights.write_model(folder, config, params, step)
        write_sums(folder, weights.FILES)
        again = predictor_of(*weights.read_model(folder)[:2], stage="cam")
        return functools.partial(_predict_all, again), (largest,)
    if form == "stablehlo":
        stablehlo.write_program(folder, config, params, step)
        write_sums(folder, stablehlo.FILES)
        smallest = smallest_side(build.backbone(config), config.cam.scales)
        # Odd sides too, since the program pads its input.
        odd = tuple(max(side - 3, smallest) for side in largest)
        return functools.partial(_run, jax.jit(stablehlo.read_program(folder))), (largest, odd)
    onnx.write_program(folder, config, params, step, largest)
    write_sums(folder, onnx.FILES)
    return functools.partial(_run, onnx.read_program(folder)), (largest,)


def _predict_all(predictor, images):
    """Returns the outputs of a Predictor that `verify` compares."""
    everything = [predictor(image, tags=predictor.classes) for image in images]
    return {
        "scores": [result.scores for result in everything],
        "cams": [result.cams for result in everything],
        "mask": [predictor(image).mask for image in images],
    }


def _run(program, images):
    """Returns the outputs of an exported program that `verify` compares."""
    outputs = program(images)
    return {"scores": jax.nn.sigmoid(outputs["logits"]), "cams": outputs["cams"], "mask": outputs["mask"]}
