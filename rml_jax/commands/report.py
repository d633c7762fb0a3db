"""Write one self-contained HTML page about a run.

It shows the configuration, the training curves, the CAMs over training, and the scores and images of the last
evaluation. It needs neither the data set nor an accelerator, only the files of training and evaluation in the work
directory.
"""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from rml_jax.commands import cli
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

_STRIPS = 6  # greatest number of steps whose CAMs are shown
_STRIP_WIDTH = 1000  # largest width of a row of CAMs, pixels


@cli.command
def main(arguments=None):
    """Writes the page and prints its path."""
    parser = cli.Parser("rml-jax report", description=__doc__)
    parser.add_argument("--workdir", required=True, type=Path, help="folder of the run")
    parser.add_argument("--out", type=Path, help="file to write; WORKDIR/report.html by default")
    chosen = parser.parse_args(arguments)
    out = chosen.out or chosen.workdir / "report.html"
    write_run_report(chosen.workdir, out)
    print(f"report: {out} ({out.stat().st_size / 1e6:.1f} MB)")


def write_run_report(workdir, path):
    """Writes the page of a run.

    Args:
      workdir: pathlib.Path of the run. It must contain config.json; sections for other missing files are left out.
      path: pathlib.Path of the page.

    Raises:
      UserError: if there is no run, its evaluation can't be read, or the page can't be written.
    """
    config = load_config(workdir / "config.json")
    evaluation = _load_evaluation(workdir / "eval" / "report.json")
    scalars, logged = read_events(workdir)
    facts, sections = _facts(config), []
    if evaluation:
        facts = {"scores on": scored_set(evaluation["metrics"]), **evaluation["facts"], **facts}
    scores, *images = evaluation_sections(evaluation) if evaluation else [_not_evaluated(workdir)]
    sections = [scores, *_training(config, scalars, logged), *images]
    sections.append(config_section(flatten(config.to_dict()), flatten(default_config().to_dict())))
    try:
        atomic_write(path, page(f"RML on {config.data.name}", facts, sections))
    except OSError as error:
        raise UserError(f"--out={path}: {error.strerror}, expected a file to write to") from error


def _load_evaluation(path):
    """Returns the content of report.json, or None if nothing was evaluated."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}; expected what `rml-jax eval` writes, run it again") from error


def _not_evaluated(workdir):
    text = f"This run has not been scored yet: run rml-jax eval --workdir={workdir}, then this command again."
    return note_section("Scores", text)


def _facts(config):
    return {
        "image size in training": f"{config.train.crop_size} pixels",
        "classes": str(len(config.data.class_names)),
    }


def _training(config, scalars, logged):
    """Returns the sections about the logs of training."""
    sections = []
    if scalars:
        begin, end = config.loss.start_step, config.train.steps
        sections.append(training_section(curves(scalars, begin if begin < end else None)))
    else:
        sections.append(note_section("Training", "There are no TensorBoard files of this run."))
    if cams := logged.get("cams"):
        images = next(iter(logged.get("images", {}).values()), None)
        chosen = [
            list(cams)[i] for i in np.unique(np.linspace(0, len(cams) - 1, _STRIPS).round().astype(int))
        ]
        strips = {step: _strip(cams[step]) for step in chosen}
        sections.append(evolution_section(_strip(images) if images else None, strips))
    else:
        text = "No images were logged during training: config.log.pictures_every sets how often they are."
        sections.append(note_section("The CAMs over training", text))
    return sections


def _strip(png):
    return data_uri(np.asarray(Image.open(io.BytesIO(png)).convert("RGB")), _STRIP_WIDTH)
