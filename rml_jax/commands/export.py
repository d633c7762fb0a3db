"""A trained network as files for others:

    rml-jax export --workdir=DIR --out=OUT --format=safetensors|stablehlo|onnx

OUT is a new folder (`rml_jax.inference.export` says what is in it). What was written is read back and compared with
the live model on noise and photographs; if it differs, or anything fails, there is no OUT.
"""

import argparse
import functools
import json
import shutil
import tempfile
from pathlib import Path

import jax

from rml_jax.inference.export import onnx, stablehlo, weights
from rml_jax.inference.export.card import METRICS, model_card, read_metrics
from rml_jax.inference.export.checksums import write_sums
from rml_jax.inference.export.verify import verify
from rml_jax.inference.predictor import load_model, predictor_of
from rml_jax.models import build
from rml_jax.stages.canvas import smallest_side
from rml_jax.utils.compilation_cache import use_compilation_cache
from rml_jax.utils.errors import UserError

FORMATS = ("safetensors", "stablehlo", "onnx")

_CONTENT = {
    "safetensors": "Weights and configuration: `rml_jax.load(FOLDER)` reads them.",
    "stablehlo": "A program for jax, `jax.export.deserialize`; pictures of any size go in, `model.json` says how.",
    "onnx": "A program for ONNX runtimes; `model.json` says what goes in and what comes out.",
}


def main(arguments=None):
    """The command line of this module, see its docstring."""
    parser = argparse.ArgumentParser("rml-jax export", description="A trained network as files.")
    parser.add_argument("--workdir", required=True, help="folder of a run, or an exported model")
    parser.add_argument("--out", required=True, type=Path, help="folder to write; must not exist")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--checkpoint", help="newest, best or a step; the run's eval.checkpoint by default")
    chosen = parser.parse_args(arguments)
    try:
        use_compilation_cache()
        differences = export(chosen.workdir, chosen.out, chosen.format, chosen.checkpoint)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    print("largest differences from the live model:")
    for name, difference in differences.items():
        print(f"  {name:8}{difference:.2e}")
    print(f"written: {chosen.out}")


def export(workdir, out, form, checkpoint=None):
    """Writes an exported folder.

    Args:
      workdir, checkpoint: see `rml_jax.load`.
      out: pathlib.Path of the folder.
      form: one of FORMATS.

    Returns:
      Dict from "scores", "cams" and "mask" to the largest difference from the live model (`verify`).

    Raises:
      UserError: if there is no model, `out` exists or can't be written, or the export differs from the model.
    """
    if out.exists():
        raise UserError(f"--out={out}: found something there, expected the name of a new folder")
    config, params, step = load_model(workdir, checkpoint)
    live = predictor_of(config, params, stage="cam")
    metrics = read_metrics(Path(workdir))
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        # Beside its final place, so that it can be renamed.
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.absolute().parent))
    except OSError as error:
        raise UserError(f"--out={out}: {error.strerror}, expected a folder to write to") from error
    try:
        exported, sizes = _write(form, folder, config, params, step, config.eval.canvases)
        differences = verify(live, exported, sizes)
        card = model_card(config, step, metrics, differences, _CONTENT[form])
        (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")
        if form == "safetensors" and metrics:
            (folder / METRICS).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        folder.chmod(0o755)  # It and safetensors' file were made for this user alone.
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
      The function of what was read back from them and the sizes of the pictures to try, for `verify`.
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
        # Also of odd sides: the program pads inside.
        odd = tuple(max(side - 3, smallest) for side in largest)
        return functools.partial(_run, jax.jit(stablehlo.read_program(folder))), (largest, odd)
    onnx.write_program(folder, config, params, step, largest)
    write_sums(folder, onnx.FILES)
    return functools.partial(_run, onnx.read_program(folder)), (largest,)


def _predict_all(predictor, pictures):
    """What `verify` compares, of another Predictor."""
    everything = [predictor(picture, tags=predictor.classes) for picture in pictures]
    return {
        "scores": [result.scores for result in everything],
        "cams": [result.cams for result in everything],
        "mask": [predictor(picture).mask for picture in pictures],
    }


def _run(program, pictures):
    """What `verify` compares, of an exported program."""
    outputs = program(pictures)
    return {"scores": jax.nn.sigmoid(outputs["logits"]), "cams": outputs["cams"], "mask": outputs["mask"]}


if __name__ == "__main__":
    main()
