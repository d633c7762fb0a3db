"""The HTML of a report's page, which is self-contained."""

from collections.abc import Mapping, Sequence
from html import escape
from string import Template

from rml_jax import visualize
from rml_jax.report.explorer import explorer_section
from rml_jax.report.scores import (
    SHORT,
    TITLES,
    WITHOUT_MASKS,
    best_stage,
    classification,
    percent,
    stage_scores,
)


def page(title: str, facts: Mapping[str, str], sections: Sequence[str]) -> str:
    """Returns the HTML of a whole page.

    Args:
      title: heading of the page.
      facts: name -> value of the facts shown at the top.
      sections: HTML of the sections, in order.
    """
    return _PAGE.substitute(
        title=escape(title),
        facts="\n".join(_fact(name, value) for name, value in facts.items()),
        sections="\n\n".join(sections),
    )


def evaluation_sections(evaluation: Mapping) -> list[str]:
    """Returns the sections about an evaluation: scores, IoU by class, figures and images.

    Args:
      evaluation: content of `report.json`, see `rml_jax.report.write_report`.

    Returns:
      HTML of the sections.
    """
    metrics, class_names = evaluation["metrics"], evaluation["class_names"]
    tag_scores = "".join(f"<p>{escape(line)}</p>" for line in classification(metrics))
    if "miou" in metrics:
        protocol, best = best_stage(metrics)
        scores = _SCORES.substitute(
            protocols="".join(f"<th>{TITLES[p].removeprefix('mIoU ')}</th>" for p in metrics["miou"]),
            stage_rows="\n".join(_stage_row(*row, is_best=row[0] == best) for row in stage_scores(metrics)),
            classification=tag_scores,
            best_stage=escape(best),
            best_protocol=SHORT[protocol],
            class_rows="\n".join(_class_rows(metrics, class_names)),
        )
    else:
        protocol = metrics["settings"]["eval"]["protocols"][0]
        scores = note_section("Scores", f"{WITHOUT_MASKS.capitalize()}.") + tag_scores
    figures = "\n".join(_image(*figure, kind="chart") for figure in evaluation["figures"].items())
    guide = _GUIDE.substitute(best_protocol=SHORT[protocol], legend=_legend(class_names))
    return [scores, figures, guide, *_explorer(evaluation), *(_part(*p) for p in evaluation["parts"].items())]


def _explorer(evaluation: Mapping) -> list[str]:
    explorer = evaluation.get("explorer")  # reports of version 0.2 have none
    if not explorer or not explorer["scenes"]:
        return []
    command = "--config.eval.background.cam=SCORE"
    if evaluation["metrics"].get("settings", {}).get("eval", {}).get("region_contrast"):
        command += " --config.eval.region_contrast=0"  # The explorer shows one score for all images.
    return [explorer_section(explorer["scenes"], evaluation["class_names"], explorer["background"], command)]


def training_section(curves: Sequence[str]) -> str:
    """Returns the section of the training curves, each an `<svg>` element."""
    panels = "\n".join(curves)
    return f"""<h2>Training</h2>
<p>Values logged during training, by step; the terms of the loss are not multiplied by their weights. Left of the
dotted line, only the classification loss is trained.</p>
<div class="curves">
{panels}
</div>"""


def evolution_section(images: str | None, cams: Mapping[int, str]) -> str:
    """Returns the section of the CAMs over training.

    Args:
      images: data URI of the images in a row, or None if they were not logged.
      cams: step -> data URI of their CAMs in a row, in order.
    """
    strips = [_image("the images", images, kind="strip")] if images else []
    strips += [_image(f"CAMs at step {step}", uri, kind="strip") for step, uri in cams.items()]
    return """<h2>The CAMs over training</h2>
<p>The same validation images in every row, with the CAM of the strongest class present.</p>
""" + "\n".join(strips)


def config_section(values: Mapping, defaults: Mapping) -> str:
    """Returns the section of the run's whole configuration, collapsed; keys that differ from the defaults are marked.

    Args:
      values: dotted key -> value.
      defaults: dotted key -> default value.
    """
    rows = []
    for key, value in values.items():
        mark = ' class="changed"' if key not in defaults or defaults[key] != value else ""
        rows.append(f'<tr><th scope="row">{escape(key)}</th><td{mark}>{escape(repr(value))}</td></tr>')
    table = "\n".join(rows)
    return f"""<h2>Configuration</h2>
<details><summary>{len(values)} keys; those that differ from the defaults are marked</summary>
<table><tbody>
{table}
</tbody></table>
</details>"""


def note_section(heading: str, text: str) -> str:
    """Returns a section with one paragraph."""
    return f"<h2>{escape(heading)}</h2>\n<p>{escape(text)}</p>"


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
    # The only name that is not a class of the data set is the background's, label 0.
    return [_class_row(name, labels.get(name, 0), score) for name, score in scores.items()]


def _image(caption: str, uri: str, kind: str = "", pixelated: bool = False) -> str:
    caption = escape(caption)
    of_figure = f' class="{kind}"' if kind else ""
    of_image = ' class="pixelated"' if pixelated else ""
    return (
        f'<figure{of_figure}><img{of_image} alt="{caption}" src="{uri}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _part(heading: str, scenes: Sequence[Mapping]) -> str:
    return f"<h2>{escape(heading)}</h2>\n" + "\n".join(map(_scene, scenes))


def _class_row(name: str, label: int, score: float | None) -> str:
    if score is None:
        cells = '<td colspan="2" class="absent">not in the ground truth</td>'
    else:
        share = percent(score)
        cells = f'<td>{share}</td><td><div class="bar" style="width: {share}%"></div></td>'
    return f'<tr><th scope="row">{_swatch(label)}{escape(name)}</th>{cells}</tr>'


def _legend(class_names: Sequence[str]) -> str:
    entries = [*enumerate(class_names, start=1), (255, "undecided or not annotated")]
    return "\n".join(f"<li>{_swatch(label)}{escape(name)}</li>" for label, name in entries)


def _swatch(label: int) -> str:
    red, green, blue = visualize.palette()[label]
    return f'<span class="swatch" style="background: rgb({red}, {green}, {blue})"></span>'


def _scene(scene: Mapping) -> str:
    figures = [_image(*image, pixelated=scene["pixelated"]) for image in scene["pictures"].items()]
    return _SCENE.substitute(
        id=escape(scene["id"]),
        given=_tags(scene["tags"], allowed=scene["predicted_tags"], otherwise="missed"),
        predicted=_tags(scene["predicted_tags"], allowed=scene["tags"], otherwise="wrong"),
        columns=len(figures),
        width=scene["width"],
        figures="\n".join(figures),
    )


def _tags(tags: Sequence[str], allowed: Sequence[str], otherwise: str) -> str:
    """Returns tags as HTML; those not in `allowed` are marked by the word `otherwise`."""
    marked = [
        escape(tag) if tag in allowed else f'<span class="error">{escape(tag)} ({otherwise})</span>'
        for tag in tags
    ]
    return ", ".join(marked) or "none"


_SCENE = Template("""\
<section>
<h3>$id</h3>
<p class="tags">tags given: $given<br>tags predicted: $predicted</p>
<div class="row" style="--columns: $columns; --width: ${width}px">
$figures
</div>
</section>""")

_SCORES = Template("""\
<div class="tables">
<div>
<h2>Scores</h2>
<div class="scroll">
<table>
<thead><tr><th>mIoU, %</th>$protocols<th>background score</th></tr></thead>
<tbody>
$stage_rows
</tbody>
</table>
</div>
<p>With <em>predicted tags</em>, the model decides which classes an image may contain, as it does in use. With
<em>given tags</em>, the ground truth does, as in many papers. Scores of the two protocols are not comparable. In
brackets: the change by a stage's CRF.</p>
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
</div>""")

_GUIDE = Template("""\
<h2>How to read the images</h2>
<p>From left to right: the image; the <em>CAM</em> of the strongest class present, from dark (0) to yellow (1); the
<em>affinity</em> of the ringed pixel, where that CAM is greatest, to all others: high where the network predicts the
same class; the <em>pseudo label</em> that training derives from the CAMs and the given tags; the
<em>prediction</em> after each stage of inference ($best_protocol); and the <em>ground truth</em>, which is used for
scoring only. Classes are coloured as below; background is not coloured.</p>
<ul class="legend">
$legend
</ul>""")

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
.curves {
  display: grid; gap: 1rem; max-width: 80rem;
  grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr));
}
.curves svg { display: block; width: 100%; height: auto; }
.strip { max-width: 62rem; margin: 0.5rem 0; }
details table { margin: 0.5rem 0; font-size: 0.85rem; }
details td, details th { white-space: normal; overflow-wrap: anywhere; text-align: left; }
.changed { color: var(--accent); font-weight: bold; }
.scroll { overflow-x: auto; }
</style>
</head>
<body>
<h1>$title</h1>
<p>This model was trained on image-level tags only: the classes in each image, without their locations.</p>
<dl>
$facts
</dl>

$sections
</body>
</html>
""")
