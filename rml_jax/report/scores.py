"""Formatting of the scores of an evaluation for a terminal, as Markdown and for the page's table.

All functions take the content of `metrics.json`, see `rml_jax.report`.
"""

from collections.abc import Mapping, Sequence

from rml_jax.stages.registry import split_stage

# Title of a protocol's column, and its short name.
TITLES = {"predicted": "mIoU predicted tags", "given": "mIoU given tags", "files": "mIoU of the files"}
SHORT = {"predicted": "predicted tags", "given": "given tags", "files": "files"}
WITHOUT_MASKS = "there are no masks to score by (config.data.masks): only the predicted tags are scored"


def score_table(metrics: Mapping) -> str:
    """Formats the scores as plain text for a terminal, in percent.

    Args:
      metrics: content of `metrics.json`, see `rml_jax.report`.

    Returns:
      Lines of text without a final line break: the scored split; one row per stage with a column per protocol, in
      brackets the change by a CRF, and the background score with the split it was chosen on; the classification
      scores. If there were no masks, a line says so in place of the rows.
    """
    if "miou" not in metrics:
        return "\n".join([f"{scored_set(metrics)} (scores in %)", WITHOUT_MASKS, *classification(metrics)])
    protocols, rows = list(metrics["miou"]), stage_scores(metrics)
    width = max(10, *(len(stage) + 2 for stage, *_ in rows))
    lines = [[f"{'stage':<{width}}", *(f"{TITLES[p]:>21}" for p in protocols), "   background score"]]
    for stage, cells, background in rows:
        lines.append([f"{stage:<{width}}", *(f"{cell:>21}" for cell in cells), f"   {background}"])
    lines = ["".join(line).rstrip() for line in lines]
    if "background" not in metrics:
        lines[0] = lines[0].removesuffix("   background score")
    return "\n".join([f"{scored_set(metrics)} (scores in %)", *lines, *classification(metrics)])


def background_flags(metrics: Mapping) -> str:
    """Formats the flags that give `rml-jax predict` the background scores that were chosen.

    Args:
      metrics: content of `metrics.json`, see `rml_jax.report`.

    Returns:
      One line with the flags of each stage, for the first protocol; "" if no scores were chosen.
    """
    chosen = next(iter(metrics.get("background", {}).values()), {})
    flags = [
        f"--stage={stage} --background={of['score']:g}" + _contrast_flag(of)
        for stage, of in chosen.items()
        if of["chosen_on"] != "fixed"
    ]
    return f"to predict with the chosen scores: {', or '.join(flags)}" if flags else ""


def _contrast_flag(background: Mapping) -> str:
    weight = background.get("region_contrast", 0)
    return f" --region_contrast={weight:g}" if weight else ""


def class_table(metrics: Mapping) -> str:
    """Formats the IoU of every class, stage and protocol, in percent, as a Markdown file.

    Args:
      metrics: content of `metrics.json`, see `rml_jax.report`.

    Returns:
      The file's text.
    """
    columns = [(protocol, stage) for protocol, stages in metrics["iou"].items() for stage in stages]
    names = list(metrics["iou"][columns[0][0]][columns[0][1]])
    backgrounds = {(p, s): _background(metrics, p, s) for p, s in columns}
    rows = [["IoU, %", *(f"{SHORT[p]}: {s}" for p, s in columns)], ["---", *["---:"] * len(columns)]]
    if any(backgrounds.values()):
        rows.append(["background score", *(backgrounds[column] for column in columns)])
    for name in names:
        values = [metrics["iou"][p][s][name] for p, s in columns]
        rows.append([name, *("absent" if value is None else percent(value) for value in values)])
    rows.append(["**mean**", *(f"**{percent(metrics['miou'][p][s])}**" for p, s in columns)])
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"{scored_set(metrics)}\n\n{table}\n"


def best_stage(metrics: Mapping) -> tuple[str, str]:
    """Returns the first protocol and the stage with the highest mIoU under it."""
    protocol, stages = next(iter(metrics["miou"].items()))
    return protocol, max(stages, key=stages.get)


def scored_set(metrics: Mapping) -> str:
    """Describes the scored data and model in one line."""
    if "step" in metrics:
        scored = f"step {metrics['step']}"
    else:
        scored = next(f"{kind} {metrics[kind]}" for kind in ("weights", "masks") if kind in metrics)
    counted = f"{metrics['images']} images"
    if "classes_scored" in metrics:
        counted += (
            f" ({metrics['pixels_scored']:,} pixels of {metrics['classes_scored']} classes with background)"
        )
    return f"{metrics['dataset']} {metrics['split']}, {counted}, {scored}"


def classification(metrics: Mapping) -> list[str]:
    """Formats the classification scores as lines of text; an empty list if there are none."""
    if "classification" not in metrics:
        return []
    scores = metrics["classification"]
    return [f"classification F1 {percent(scores['f1'])}, mAP {percent(scores['map'])}"]


def stage_scores(metrics: Mapping) -> list[tuple[str, list[str], str]]:
    """Returns each stage with its score under every protocol and its background score, as text."""
    protocols = list(metrics["miou"])
    rows = []
    for stage in metrics["miou"][protocols[0]]:
        cells = [_score(metrics["miou"][protocol], stage) for protocol in protocols]
        backgrounds = dict.fromkeys(_background(metrics, protocol, stage) for protocol in protocols)
        rows.append((stage, cells, _join_backgrounds(list(backgrounds))))
    return rows


def _score(scores: Mapping, stage: str) -> str:
    """Formats a score in percent and, in brackets, its change by the stages after the base (`stages.registry`)."""
    try:
        before, added = split_stage(stage)
    except ValueError:  # a stage that is not registered in this process, or masks from files
        added = ()
    if not added or before not in scores:
        return percent(scores[stage])
    return f"{percent(scores[stage])} ({100 * (scores[stage] - scores[before]):+.1f})"


def _background(metrics: Mapping, protocol: str, stage: str) -> str:
    if "background" not in metrics:
        return ""
    background = metrics["background"][protocol][stage]
    near = "near " if background.get("region_contrast") else ""
    return f"{near}{background['score']:g}, {background['chosen_on']}"


def _join_backgrounds(texts: Sequence[str]) -> str:
    """Joins the background scores of several protocols: "0.2 and 0.3, chosen on val"."""
    scores, origins = zip(*(text.partition(", ")[::2] for text in texts), strict=True)
    if len(set(origins)) > 1:
        return " and ".join(texts)
    return f"{' and '.join(scores)}, {origins[0]}" if origins[0] else ""


def percent(score: float) -> str:
    """Formats a fraction of 1 in percent."""
    return f"{100 * score:.1f}"
