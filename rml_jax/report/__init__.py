"""Reports on a run's scores and images: a table for the terminal and self-contained HTML pages.

All functions take the scores as the content of `metrics.json`, in fractions of 1:

    {"dataset": "voc", "split": "val", "images": 1449, "step": 18000,
     "classification": {"f1": 0.9, "map": 0.95},
     "miou": {"predicted": {"cam": 0.5, ...}, "given": {"cam": 0.6, ...}},
     "iou": {"predicted": {"cam": {"background": 0.8, "cat": null, ...}, ...}, "given": {...}},
     "background": {"predicted": {"cam": {"score": 0.4, "chosen_on": "fixed"}, ...}, "given": {...}}}

Scores of a weights file have `weights` instead of `step`. Scores of a mask folder have `masks`, the single protocol
`files`, and neither `classification` nor `background`. Without masks to score by, `miou` and `iou` are missing.
docs/evaluation.md defines the protocols.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rml_jax.evaluation.samples import Sample, sample_images
from rml_jax.report.explorer import MAX_IMAGES, explorer_scene
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
    explorer: Mapping | None = None,
) -> None:
    """Writes the page of an evaluation, a self-contained HTML file.

    Its content is also written as JSON, to the same name with the suffix .json, for the page of the whole run. Both
    writes are atomic.

    Args:
      path: file to write, in an existing folder.
      title: heading of the page.
      facts: name -> value of facts about the run, such as the backbone's initial weights.
      metrics: content of `metrics.json`, see the docstring of this package.
      parts: heading -> the images shown below it, one row each.
      figures: caption -> the bytes of a PNG, shown between the tables and the images.
      class_names: the C classes without background; mask value 1 + i is class i.
      explorer: `background`, the score of stage cam, and `cell` (`rml_jax.report.explorer.cell_size`), for the
        section in which that score is chosen; it shows the samples that have `class_cams`. None leaves it out.

    Raises:
      ValueError: if the arrays of a sample differ in size.
      OSError: if a file can't be written.
    """
    evaluation = {
        "title": title,
        "facts": dict(facts),
        "metrics": dict(metrics),
        "class_names": list(class_names),
        "figures": {caption: encoded_uri(png, "png") for caption, png in figures.items()},
        "parts": {heading: [scene(sample) for sample in samples] for heading, samples in parts.items()},
    }
    if explorer:
        samples = {sample.id: sample for part in parts.values() for sample in part if sample.class_cams}
        evaluation["explorer"] = {
            "background": explorer["background"],
            "scenes": [
                explorer_scene(sample.id, sample.image, sample.class_cams, explorer["cell"])
                for sample in list(samples.values())[:MAX_IMAGES]
            ],
        }
    text = page(title, {"scores on": scored_set(metrics), **facts}, evaluation_sections(evaluation))
    path = Path(path)
    atomic_write(path.with_suffix(".json"), json.dumps(evaluation))
    atomic_write(path, text)
