"""Scores and pictures of a run: the table for a terminal and self-contained HTML pages.

`eval.py` writes the page of an evaluation; `rml-jax report --workdir=DIR` the one of the whole run, with
its training curves and configuration.

Scores come as the content of `metrics.json`, fractions of 1:

    {"dataset": "voc", "split": "val", "images": 1449, "step": 18000,
     "classification": {"f1": 0.9, "map": 0.95},
     "miou": {"predicted": {"cam": 0.5, ...}, "given": {"cam": 0.6, ...}},
     "iou": {"predicted": {"cam": {"background": 0.8, "cat": null, ...}, ...}, "given": {...}},
     "background": {"predicted": {"cam": {"score": 0.4, "chosen_on": "fixed"}, ...}, "given": {...}}}

Instead of the `step` of a run there may be `weights`, the file that was scored, or `masks`, the folder of masks.
`predicted` and `given` are the two protocols of METHOD.md section 6: the classes allowed in an image come from the
model's own tags or from the ground truth; of masks from a folder, whose protocol is `files`, it is not known, and
they have neither `classification` nor `background`. Every score is shown under the name of its protocol and beside
the split on which its background score was chosen.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rml_jax.evaluation.samples import Sample, sample_images
from rml_jax.report.page import evaluation_sections, page
from rml_jax.report.samples import encoded_uri, scene
from rml_jax.report.scores import best_stage, class_table, score_table, scored_set
from rml_jax.utils.files import atomic_write

__all__ = ["Sample", "best_stage", "class_table", "sample_images", "score_table", "write_report"]


def write_report(
    path: str | Path,
    *,
    title: str,
    facts: Mapping[str, str],
    metrics: Mapping,
    parts: Mapping[str, Sequence[Sample]],
    figures: Mapping[str, bytes],
    class_names: Sequence[str],
) -> None:
    """Writes an evaluation's page, one HTML file that needs no other file, no network and no JavaScript.

    What the page shows is kept beside it under the same name with the suffix .json, for the page of the whole run.
    Both replace older ones in one step: a reader never sees half of them.

    Args:
      path: the page, in an existing folder.
      title: heading of the page.
      facts: what the reader should know of the run, name to value, such as what the backbone started from.
      metrics: the content of `metrics.json`, see the head of this package.
      parts: heading to the images to show below it, one row each.
      figures: caption to a PNG file's bytes, shown between the tables and the images.
      class_names: the C classes without background; mask value 1 + i is class i.

    Raises:
      ValueError: the arrays of a sample differ in size.
      OSError: a file cannot be written.
    """
    evaluation = {
        "title": title,
        "facts": dict(facts),
        "metrics": dict(metrics),
        "class_names": list(class_names),
        "figures": {caption: encoded_uri(png, "png") for caption, png in figures.items()},
        "parts": {heading: [scene(sample) for sample in samples] for heading, samples in parts.items()},
    }
    text = page(title, {"scores on": scored_set(metrics), **facts}, evaluation_sections(evaluation))
    path = Path(path)
    atomic_write(path.with_suffix(".json"), json.dumps(evaluation))
    atomic_write(path, text)
