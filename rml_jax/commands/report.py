"""One self-contained HTML page of a whole run: rml-jax report --workdir=DIR [--out=FILE.html]

Configuration, training curves, the CAMs over training, and the scores and images of the last evaluation. It opens
in a browser without a server; making it needs neither the data set nor an accelerator, only what train.py and eval.py
left in DIR.
"""

import argparse
import io
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from rml_jax.config import default_config, flatten, load_config
from rml_jax.report.page import (
    config_section,
    evaluation_sections,
    evolution_section,
    note_section,
    page,
    training_section,
)
from rml_jax.report.samples import data_uri
from rml_jax.report.scores import scored_set
from rml_jax.report.training import curves, read_events
from rml_jax.utils.errors import UserError
from rml_jax.utils.files import atomic_write

_STRIPS = 6  # most steps whose CAMs are shown
_STRIP_WIDTH = 1000  # pixels to which a row of CAMs is reduced


def main(argv=None):
    """Writes the page and prints its path.

    Args:
      argv: the command line's arguments; those of this process if None.
    """
    parser = argparse.ArgumentParser("rml-jax report", description="Writes one HTML page of a run.")
    parser.add_argument("--workdir", type=Path, required=True, help="folder of the run")
    parser.add_argument("--out", type=Path, help="the page; WORKDIR/report.html by default")
    chosen = parser.parse_args(argv)
    out = chosen.out or chosen.workdir / "report.html"
    try:
        write_run_report(chosen.workdir, out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"report: {out} ({out.stat().st_size / 1e6:.1f} MB)")


def write_run_report(workdir, path):
    """Writes the page of a run.

    Args:
      workdir: pathlib.Path of the run; config.json must be there, the rest is shown as far as it is.
      path: pathlib.Path of the page.

    Raises:
      UserError: if there is no run, what its evaluation left can't be read, or the page can't be written.
    """
    config = load_config(workdir / "config.json")
    evaluation = _load_evaluation(workdir / "eval" / "report.json")
    scalars, pictures = read_events(workdir)
    facts, sections = _facts(config), []
    if evaluation:
        facts = {"scores on": scored_set(evaluation["metrics"]), **evaluation["facts"], **facts}
    scores, *images = evaluation_sections(evaluation) if evaluation else [_not_evaluated(workdir)]
    sections = [scores, *_training(config, scalars, pictures), *images]
    sections.append(config_section(flatten(config.to_dict()), flatten(default_config().to_dict())))
    try:
        atomic_write(path, page(f"RML on {config.data.name}", facts, sections))
    except OSError as error:
        raise UserError(f"--out={path}: {error.strerror}, expected a file to write to") from error


def _load_evaluation(path):
    """The content of report.json; None where nothing was evaluated."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}; expected what eval.py writes, run it again") from error


def _not_evaluated(workdir):
    text = f"This run has not been scored yet: python eval.py --workdir={workdir}, then this command again."
    return note_section("Scores", text)


def _facts(config):
    return {
        "picture size in training": f"{config.train.crop_size} pixels",
        "classes": str(len(config.data.class_names)),
    }


def _training(config, scalars, pictures):
    """The sections of what the loop logged."""
    sections = []
    if scalars:
        begin, end = config.loss.start_step, config.train.steps
        sections.append(training_section(curves(scalars, begin if begin < end else None)))
    else:
        sections.append(note_section("Training", "There are no TensorBoard files of this run."))
    if cams := pictures.get("cams"):
        images = next(iter(pictures.get("images", {}).values()), None)
        chosen = [
            list(cams)[i] for i in np.unique(np.linspace(0, len(cams) - 1, _STRIPS).round().astype(int))
        ]
        strips = {step: _strip(cams[step]) for step in chosen}
        sections.append(evolution_section(_strip(images) if images else None, strips))
    else:
        text = "No pictures were kept during training: config.log.pictures_every says how often they are."
        sections.append(note_section("The CAMs over training", text))
    return sections


def _strip(png):
    return data_uri(np.asarray(Image.open(io.BytesIO(png)).convert("RGB")), _STRIP_WIDTH)


if __name__ == "__main__":
    main()
