"""Scores and pictures of an evaluation: the table for a terminal and one self-contained HTML page.

Both read the content of `metrics.json`, scores as fractions of 1:

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

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from rml_jax import files, visualize

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
      cam: float [H, W] in 0..1, the normalised class activation map of the strongest present class; None for masks
        from a folder.
      pseudo_label: uint8 [H, W]; 0 background, 1 + class index, 255 undecided; None likewise.
      predictions: stage (`cam`, `affinity`, `par`, ...) to its mask by the first of the protocols, uint8 [H, W].
      ground_truth: uint8 [H, W] with 255 where not annotated, or None where there is no annotation.
    """

    id: str
    image: np.ndarray
    tags: tuple[str, ...]
    predicted_tags: tuple[str, ...]
    cam: np.ndarray | None
    pseudo_label: np.ndarray | None
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
    masks = {} if sample.pseudo_label is None else {"pseudo label": sample.pseudo_label}
    masks |= {f"prediction: {stage}": mask for stage, mask in sample.predictions.items()}
    if sample.ground_truth is not None:
        masks["ground truth"] = sample.ground_truth
    overlays = {caption: visualize.overlay(sample.image, mask) for caption, mask in masks.items()}
    heat = {} if sample.cam is None else {"CAM": visualize.heat_map(sample.image, sample.cam)}
    return {"image": sample.image} | heat | overlays


def score_table(metrics: Mapping) -> str:
    """The scores as plain text for a terminal, in percent.

    Args:
      metrics: the content of `metrics.json`, see the head of this module.

    Returns:
      Several lines without a final line break: what was scored; one row per stage with a column per protocol, in
      brackets what a CRF adds to its stage, and the background score with the split it was chosen on; the
      classification scores.
    """
    protocols, rows = list(metrics["miou"]), _stage_scores(metrics)
    width = max(10, *(len(stage) + 2 for stage, *_ in rows))
    lines = [[f"{'stage':<{width}}", *(f"{_TITLES[p]:>21}" for p in protocols), "   background score"]]
    for stage, cells, background in rows:
        lines.append([f"{stage:<{width}}", *(f"{cell:>21}" for cell in cells), f"   {background}"])
    lines = ["".join(line).rstrip() for line in lines]
    if "background" not in metrics:
        lines[0] = lines[0].removesuffix("   background score")
    return "\n".join([f"{_scored_set(metrics)} (scores in %)", *lines, *_classification(metrics)])


def class_table(metrics: Mapping) -> str:
    """IoU of every class in every stage under every protocol, in percent, as a Markdown file.

    Args:
      metrics: the content of `metrics.json`, see the head of this module.

    Returns:
      The file's text.
    """
    columns = [(protocol, stage) for protocol, stages in metrics["iou"].items() for stage in stages]
    names = list(metrics["iou"][columns[0][0]][columns[0][1]])
    backgrounds = {(p, s): _background(metrics, p, s) for p, s in columns}
    rows = [["IoU, %", *(f"{_SHORT[p]}: {s}" for p, s in columns)], ["---", *["---:"] * len(columns)]]
    if any(backgrounds.values()):
        rows.append(["background score", *(backgrounds[column] for column in columns)])
    for name in names:
        values = [metrics["iou"][p][s][name] for p, s in columns]
        rows.append([name, *("absent" if value is None else _percent(value) for value in values)])
    rows.append(["**mean**", *(f"**{_percent(metrics['miou'][p][s])}**" for p, s in columns)])
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"{_scored_set(metrics)}\n\n{table}\n"


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
    """Writes one HTML page with scores and pictures that needs no other file, no network and no JavaScript.

    The page replaces an older one in one step: a reader never sees half of it.

    Args:
      path: the page, in an existing folder.
      title: heading of the page.
      facts: what the reader should know of the run, name to value, such as the configuration or what the
        backbone started from.
      metrics: the content of `metrics.json`, see the head of this module.
      parts: heading to the images to show below it, one row each.
      figures: caption to a PNG file's bytes, shown between the tables and the images.
      class_names: the C classes without background; mask value 1 + i is class i.

    Raises:
      ValueError: the arrays of a sample differ in size.
      OSError: the page cannot be written.
    """
    protocol, best = best_stage(metrics)
    page = _PAGE.substitute(
        title=escape(title),
        facts="\n".join(_fact(name, value) for name, value in facts.items()),
        scored_set=_fact("scores on", _scored_set(metrics)),
        protocols="".join(f"<th>{_TITLES[p].removeprefix('mIoU ')}</th>" for p in metrics["miou"]),
        stage_rows="\n".join(_stage_row(*row, is_best=row[0] == best) for row in _stage_scores(metrics)),
        classification="".join(f"<p>{escape(line)}</p>" for line in _classification(metrics)),
        best_stage=escape(best),
        best_protocol=_SHORT[protocol],
        class_rows="\n".join(_class_rows(metrics, class_names)),
        legend=_legend(class_names),
        figures="\n".join(_chart(*figure) for figure in figures.items()),
        parts="\n".join(_part(*part) for part in parts.items()),
    )
    files.write(Path(path), page)


# A protocol's column, and its short name.
_TITLES = {"predicted": "mIoU predicted tags", "given": "mIoU given tags", "files": "mIoU of the files"}
_SHORT = {"predicted": "predicted tags", "given": "given tags", "files": "files"}


def best_stage(metrics: Mapping) -> tuple[str, str]:
    """The first protocol and the stage that scores best under it."""
    protocol, stages = next(iter(metrics["miou"].items()))
    return protocol, max(stages, key=stages.get)


def _scored_set(metrics: Mapping) -> str:
    if "step" in metrics:
        scored = f"step {metrics['step']}"
    else:
        scored = next(f"{kind} {metrics[kind]}" for kind in ("weights", "masks") if kind in metrics)
    return f"{metrics['dataset']} {metrics['split']}, {metrics['images']} images, {scored}"


def _classification(metrics: Mapping) -> list[str]:
    if "classification" not in metrics:
        return []
    scores = metrics["classification"]
    return [f"classification F1 {_percent(scores['f1'])}, mAP {_percent(scores['map'])}"]


def _stage_scores(metrics: Mapping) -> list[tuple[str, list[str], str]]:
    """Each stage with its score under every protocol and its background score, as text."""
    protocols = list(metrics["miou"])
    rows = []
    for stage in metrics["miou"][protocols[0]]:
        cells = [_score(metrics["miou"][protocol], stage) for protocol in protocols]
        backgrounds = dict.fromkeys(_background(metrics, protocol, stage) for protocol in protocols)
        rows.append((stage, cells, _join_backgrounds(list(backgrounds))))
    return rows


def _score(scores: Mapping, stage: str) -> str:
    """A score in percent and, in brackets, what its CRF added."""
    before = stage.removesuffix("+crf") if stage.endswith("+crf") else "cam" if stage == "crf" else stage
    if before == stage or before not in scores:
        return _percent(scores[stage])
    return f"{_percent(scores[stage])} ({100 * (scores[stage] - scores[before]):+.1f})"


def _background(metrics: Mapping, protocol: str, stage: str) -> str:
    if "background" not in metrics:
        return ""
    background = metrics["background"][protocol][stage]
    return f"{background['score']:g}, {background['chosen_on']}"


def _join_backgrounds(texts: Sequence[str]) -> str:
    """Of several protocols, told apart only where they differ: "0.2 and 0.3, chosen on val"."""
    scores, origins = zip(*(text.partition(", ")[::2] for text in texts), strict=True)
    if len(set(origins)) > 1:
        return " and ".join(texts)
    return f"{' and '.join(scores)}, {origins[0]}" if origins[0] else ""


def _percent(score: float) -> str:
    return f"{100 * score:.1f}"


def _fact(name: str, value: str) -> str:
    return f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"


def _stage_row(stage: str, cells: Sequence[str], background: str, is_best: bool) -> str:
    mark = ' class="best"' if is_best else ""
    scores = f"<td{mark}>{cells[0]}</td>" + "".join(f"<td>{cell}</td>" for cell in cells[1:])
    return f'<tr><th scope="row">{escape(stage)}</th>{scores}<td>{escape(background)}</td></tr>'


def _class_rows(metrics: Mapping, class_names: Sequence[str]) -> list[str]:
    labels = {name: label for label, name in enumerate(class_names, start=1)}
    protocol, stage = best_stage(metrics)
    scores = metrics["iou"][protocol][stage]
    # The one name that is no class of the data set is the background's, label 0.
    return [_class_row(name, labels.get(name, 0), score) for name, score in scores.items()]


def _chart(caption: str, png: bytes) -> str:
    caption = escape(caption)
    source = "data:image/png;base64," + base64.b64encode(png).decode()
    return f'<figure class="chart"><img alt="{caption}" src="{source}"><figcaption>{caption}</figcaption></figure>'


def _part(heading: str, samples: Sequence[Sample]) -> str:
    return f"<h2>{escape(heading)}</h2>\n" + "\n".join(_scene(sample) for sample in samples)


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
.chart { max-width: 60rem; margin: 1.5rem 0; }
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
<thead><tr><th>mIoU, %</th>$protocols<th>background score</th></tr></thead>
<tbody>
$stage_rows
</tbody>
</table>
<p>With <em>predicted tags</em> the model itself decides which classes an image may contain, as it must in
use; with <em>given tags</em> it is told by the ground truth, as papers of this field often score: these are
two different measurements, so never compare a number of one column with a number of the other. In brackets,
what a stage's CRF adds.</p>
$classification
</div>

<div>
<h2>IoU by class</h2>
<p>Stage <em>$best_stage</em>, the best one: $best_protocol.</p>
<table class="classes">
<thead><tr><th>class</th><th>IoU, %</th><th></th></tr></thead>
<tbody>
$class_rows
</tbody>
</table>
</div>
</div>

$figures

<h2>How to read the images</h2>
<p>From left to right: the image; its <em>CAM</em>, how strongly each place speaks for the strongest class
present, from dark to yellow; the <em>pseudo label</em> that training derives from the CAMs and the given
tags; the <em>prediction</em> after each stage of inference ($best_protocol); and the <em>ground
truth</em>, which serves for scoring only. Colours name the classes; background is left as it is.</p>
<ul class="legend">
$legend
</ul>
$parts
</body>
</html>
""")
