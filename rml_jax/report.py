"""Scores and pictures of an evaluation: the table for a terminal and one self-contained HTML page.

Both read the content of `metrics.json`, scores as fractions of 1:

    {"dataset": "voc", "split": "val", "images": 1449, "step": 18000,
     "classification": {"f1": 0.9, "map": 0.95},
     "miou": {"predicted": {"cam": 0.5, ...}, "given": {"cam": 0.6, ...}},
     "iou": {"predicted": {"cam": {"background": 0.8, "cat": null, ...}, ...}, "given": {...}}}

Instead of the `step` of a run there may be `weights`, the file that was scored. `predicted` and `given` are the
two protocols of METHOD.md section 6: the classes allowed in an image come from the model's own tags or from the
ground truth. Every score is shown under the name of its protocol.
"""

import base64
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from rml_jax import visualize

# Widths of a picture on the page. Wider ones are stored reduced, or the page would grow by megabytes per
# photograph; narrower ones are enlarged by the browser, each pixel to a square.
_MAX_WIDTH = 220
_MIN_WIDTH = 128


@dataclass(frozen=True)
class Sample:
    """One image with everything the report shows of it.

    Attributes:
      id: name of the image.
      image: uint8 [H, W, 3].
      tags: ground-truth image tags, class names.
      predicted_tags: tags the model predicts.
      cam: float [H, W] in 0..1, the normalised class activation map of the strongest present class.
      pseudo_label: uint8 [H, W]; 0 background, 1 + class index, 255 undecided.
      predictions: stage (`cam`, `affinity`, `par`, ...) to its mask with predicted tags, uint8 [H, W].
      ground_truth: uint8 [H, W] with 255 where not annotated, or None where there is no annotation.
    """

    id: str
    image: np.ndarray
    tags: tuple[str, ...]
    predicted_tags: tuple[str, ...]
    cam: np.ndarray
    pseudo_label: np.ndarray
    predictions: dict[str, np.ndarray]
    ground_truth: np.ndarray | None


def pictures(sample: Sample) -> dict[str, np.ndarray]:
    """The pictures of one sample, from left to right, also the row that TensorBoard shows.

    Args:
      sample: all its arrays have the same H and W.

    Returns:
      Caption to picture, uint8 [H, W, 3]: the image, its CAM, the pseudo label, each stage's prediction and,
      if there is one, the ground truth.

    Raises:
      ValueError: the sample's arrays differ in size.
    """
    masks = {"pseudo label": sample.pseudo_label}
    masks |= {f"prediction: {stage}": mask for stage, mask in sample.predictions.items()}
    if sample.ground_truth is not None:
        masks["ground truth"] = sample.ground_truth
    overlays = {caption: visualize.overlay(sample.image, mask) for caption, mask in masks.items()}
    return {"image": sample.image, "CAM": visualize.heat_map(sample.image, sample.cam)} | overlays


def score_table(metrics: Mapping) -> str:
    """The scores as plain text for a terminal, in percent.

    Args:
      metrics: the content of `metrics.json`, see the head of this module.

    Returns:
      Several lines without a final line break: what was scored, one row per stage, the classification scores.
    """
    header = f"{'stage':<10}{'mIoU predicted tags':>22}{'mIoU given tags':>18}"
    rows = [
        f"{name:<10}{_percent(own):>22}{_percent(given):>18}" for name, own, given in _stage_scores(metrics)
    ]
    scores = metrics["classification"]
    classification = f"classification F1 {_percent(scores['f1'])}, mAP {_percent(scores['map'])}"
    return "\n".join([f"{_scored_set(metrics)} (scores in %)", header, *rows, classification])


def write_report(
    path: str | os.PathLike,
    *,
    title: str,
    facts: Mapping[str, str],
    metrics: Mapping,
    samples: Sequence[Sample],
    class_names: Sequence[str],
) -> None:
    """Writes one HTML page with scores and pictures that needs no other file, no network and no JavaScript.

    The page replaces an older one in one step: a reader never sees half of it.

    Args:
      path: the page, in an existing folder.
      title: heading of the page.
      facts: what the reader should know of the run, name to value, such as the configuration or what the
        backbone started from.
      metrics: the content of `metrics.json`, see the head of this module.
      samples: the images to show, one row each.
      class_names: the C classes without background; mask value 1 + i is class i.

    Raises:
      ValueError: the arrays of a sample differ in size.
      OSError: the page cannot be written.
    """
    best = _best_stage(metrics)
    page = _PAGE.substitute(
        title=escape(title),
        facts="\n".join(_fact(name, value) for name, value in facts.items()),
        scored_set=_fact("scores on", _scored_set(metrics)),
        stage_rows="\n".join(_stage_row(*row, is_best=row[0] == best) for row in _stage_scores(metrics)),
        f1=_percent(metrics["classification"]["f1"]),
        map=_percent(metrics["classification"]["map"]),
        best_stage=escape(best),
        class_rows="\n".join(_class_rows(metrics, class_names)),
        legend=_legend(class_names),
        scenes="\n".join(_scene(sample) for sample in samples),
    )
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)


def _scored_set(metrics: Mapping) -> str:
    model = f"step {metrics['step']}" if "step" in metrics else f"weights {metrics['weights']}"
    return f"{metrics['dataset']} {metrics['split']}, {metrics['images']} images, {model}"


def _stage_scores(metrics: Mapping) -> list[tuple[str, float, float]]:
    miou = metrics["miou"]
    return [(stage, score, miou["given"][stage]) for stage, score in miou["predicted"].items()]


def _best_stage(metrics: Mapping) -> str:
    predicted = metrics["miou"]["predicted"]
    return max(predicted, key=predicted.get)


def _percent(score: float) -> str:
    return f"{100 * score:.1f}"


def _fact(name: str, value: str) -> str:
    return f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"


def _stage_row(stage: str, predicted: float, given: float, is_best: bool) -> str:
    mark = ' class="best"' if is_best else ""
    return (
        f'<tr><th scope="row">{escape(stage)}</th>'
        f"<td{mark}>{_percent(predicted)}</td><td>{_percent(given)}</td></tr>"
    )


def _class_rows(metrics: Mapping, class_names: Sequence[str]) -> list[str]:
    labels = {name: label for label, name in enumerate(class_names, start=1)}
    scores = metrics["iou"]["predicted"][_best_stage(metrics)]
    # The one name that is no class of the data set is the background's, label 0.
    return [_class_row(name, labels.get(name, 0), score) for name, score in scores.items()]


def _class_row(name: str, label: int, score: float | None) -> str:
    if score is None:
        cells = '<td colspan="2" class="absent">not in the ground truth</td>'
    else:
        percent = _percent(score)
        cells = f'<td>{percent}</td><td><div class="bar" style="width: {percent}%"></div></td>'
    return f'<tr><th scope="row">{_swatch(label)}{escape(name)}</th>{cells}</tr>'


def _legend(class_names: Sequence[str]) -> str:
    entries = [*enumerate(class_names, start=1), (255, "undecided or not annotated")]
    return "\n".join(f"<li>{_swatch(label)}{escape(name)}</li>" for label, name in entries)


def _swatch(label: int) -> str:
    red, green, blue = visualize.palette()[label]
    return f'<span class="swatch" style="background: rgb({red}, {green}, {blue})"></span>'


def _scene(sample: Sample) -> str:
    figures = [_figure(caption, picture) for caption, picture in pictures(sample).items()]
    width = min(max(sample.image.shape[1], _MIN_WIDTH), _MAX_WIDTH)
    return _SCENE.substitute(
        id=escape(sample.id),
        given=_tags(sample.tags, allowed=sample.predicted_tags, otherwise="missed"),
        predicted=_tags(sample.predicted_tags, allowed=sample.tags, otherwise="wrong"),
        columns=len(figures),
        width=width,
        figures="\n".join(figures),
    )


def _tags(tags: Sequence[str], allowed: Sequence[str], otherwise: str) -> str:
    """Tags as HTML, those outside `allowed` marked by the word `otherwise`."""
    marked = [
        escape(tag) if tag in allowed else f'<span class="error">{escape(tag)} ({otherwise})</span>'
        for tag in tags
    ]
    return ", ".join(marked) or "none"


def _figure(caption: str, picture: np.ndarray) -> str:
    pixelated = ' class="pixelated"' if picture.shape[1] < _MIN_WIDTH else ""
    caption = escape(caption)
    return (
        f'<figure><img{pixelated} alt="{caption}" src="{_data_uri(picture)}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _data_uri(picture: np.ndarray) -> str:
    image = Image.fromarray(picture)
    image.thumbnail((_MAX_WIDTH, image.height))
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


_SCENE = Template("""\
<section>
<h3>$id</h3>
<p class="tags">tags given: $given<br>tags predicted: $predicted</p>
<div class="row" style="--columns: $columns; --width: ${width}px">
$figures
</div>
</section>""")

_PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root {
  color-scheme: light dark;
  --text: #1d2330; --quiet: #5b6475; --page: #ffffff; --line: #d9dde5; --accent: #2f6fde; --error: #b3261e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --text: #e4e7ee; --quiet: #9aa3b5; --page: #14171d; --line: #343a47; --accent: #6ea0ff; --error: #ff8a80;
  }
}
body {
  max-width: 1640px; margin: 0 auto; padding: 1.5rem; color: var(--text); background: var(--page);
  font: 16px/1.5 system-ui, sans-serif;
}
p { max-width: 75ch; }
h1 { margin: 0; font-size: 1.7rem; }
h2 { margin: 2.5rem 0 0.5rem; font-size: 1.25rem; }
h3 { margin: 0; font-size: 1rem; overflow-wrap: anywhere; }
dl { display: flex; flex-wrap: wrap; gap: 0.5rem 2rem; }
dt, figcaption, .tags, .absent { color: var(--quiet); font-size: 0.85rem; }
dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 1rem 0.25rem 0; text-align: right; font-weight: normal; white-space: nowrap; }
th:first-child, .absent { text-align: left; }
thead th { color: var(--quiet); font-size: 0.85rem; }
tbody tr { border-top: 1px solid var(--line); }
.best { color: var(--accent); font-weight: bold; }
.tables {
  display: grid; gap: 0 3rem; grid-template-columns: repeat(auto-fit, minmax(min(32rem, 100%), 1fr));
}
.classes { width: 100%; max-width: 48rem; }
.classes td:last-child { width: 100%; padding-right: 0; }
.bar { height: 0.7rem; border-radius: 2px; background: var(--accent); }
.swatch {
  display: inline-block; width: 0.85em; height: 0.85em; margin-right: 0.5em; border: 1px solid var(--line);
  border-radius: 2px; vertical-align: -0.08em;
}
.legend { display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; padding: 0; list-style: none; }
section { margin-top: 1rem; padding-top: 1rem; border-top: 1px solid var(--line); }
.tags { margin: 0 0 0.5rem; }
.error { color: var(--error); font-weight: bold; }
.row { display: grid; gap: 0.5rem; grid-template-columns: repeat(var(--columns), minmax(0, var(--width))); }
@media (max-width: 900px) {
  .row { grid-template-columns: repeat(auto-fill, minmax(min(var(--width), 40vw), 1fr)); }
}
figure { margin: 0; }
img { display: block; width: 100%; }
.pixelated { image-rendering: pixelated; }
</style>
</head>
<body>
<h1>$title</h1>
<p>This model has learned to segment from image tags alone: in training it was told which classes an image
shows, never where they are. Below are its scores, then what it makes of single images.</p>
<dl>
$scored_set
$facts
</dl>

<div class="tables">
<div>
<h2>Scores</h2>
<table>
<thead><tr><th>mIoU, %</th><th>predicted tags</th><th>given tags</th></tr></thead>
<tbody>
$stage_rows
</tbody>
</table>
<p>With <em>predicted tags</em> the model itself decides which classes an image may contain, as it must in
use; with <em>given tags</em> it is told by the ground truth, as papers of this field often score: these are
two different measurements, so never compare a number of one column with a number of the other.</p>
<p>Image tags, predicted by the classifier: F1&nbsp;$f1&nbsp;%, mean average precision&nbsp;$map&nbsp;%.</p>
</div>

<div>
<h2>IoU by class</h2>
<p>Stage <em>$best_stage</em>, the best one with predicted tags.</p>
<table class="classes">
<thead><tr><th>class</th><th>IoU, %</th><th></th></tr></thead>
<tbody>
$class_rows
</tbody>
</table>
</div>
</div>

<h2>Images</h2>
<p>From left to right: the image; its <em>CAM</em>, how strongly each place speaks for the strongest class
present, from dark to yellow; the <em>pseudo label</em> that training derives from the CAMs and the given
tags; the <em>prediction</em> after each stage of inference, with predicted tags; and the <em>ground
truth</em>, which serves for scoring only. Colours name the classes; background is left as it is.</p>
<ul class="legend">
$legend
</ul>
$scenes
</body>
</html>
""")
