"""Evaluation with its results written to files: scores, figures and the page of an evaluation."""

import json
import shutil

from rml_jax.evaluation import run
from rml_jax.evaluation.masks import MaskWriter
from rml_jax.evaluation.plots import confusion_figure, sweep_figure
from rml_jax.losses import term_weights
from rml_jax.models import build
from rml_jax.report import write_report
from rml_jax.report.explorer import cell_size
from rml_jax.report.scores import best_stage, class_table
from rml_jax.utils import distributed
from rml_jax.utils.errors import UserError
from rml_jax.utils.files import atomic_write

_PARTS = "parts"  # folder of the results of some images each, while an evaluation runs


def evaluate_run(config, workdir, split, weights="", save_masks=False):
    """Scores the checkpoint that `eval.checkpoint` names, or other weights.

    Writes metrics.json, report.html, per_class.md, confusion.png (of the best stage) and, if the background scores
    are swept, sweep.json and sweep.png to `eval/` (docs/evaluation.md). Without masks to score by, tags alone are
    scored: per_class.md and confusion.png are not written.

    Args:
      config: ConfigDict of the run, possibly with overrides.
      workdir: pathlib.Path of the run; created if it doesn't exist and weights are given.
      split: name of the split to score.
      weights: file to score instead of the checkpoint (`rml_jax.models.weights`); "" for none.
      save_masks: whether to write every predicted mask to `eval/masks/` (`rml_jax.evaluation.masks.MaskWriter`).

    Several processes share the images; the first one writes. An evaluation that was stopped goes on where it was, by
    what `eval/parts/` holds, which is removed at the end.

    Returns:
      Content of metrics.json, and the path of report.html; None on all processes but the first.

    Raises:
      UserError: if the configuration, the data, the work directory or the weights are wrong.
    """
    candidate = run.load_candidate(config, workdir, split, weights)
    folder = _make_folder(workdir)
    mask_values = tuple(candidate.config.data.mask_values)
    save = MaskWriter(folder / "masks", split, mask_values) if save_masks else None
    evaluation = run.score_candidate(candidate, folder / _PARTS, save)
    facts = _facts_of_weights(candidate.config, weights) if weights else _facts(candidate.config)
    metrics = evaluation.metrics
    canvases, resized = len(metrics["canvases"]), len(metrics["resized"])
    facts["programs compiled"] = (
        f"{metrics['programs']}, for {canvases} canvas{'' if canvases == 1 else 'es'}"
    )
    if resized:
        facts["resized"] = f"{resized} images, which fit on no canvas or are too small"
    page = distributed.on_first_process(lambda: _write(folder, evaluation, facts))
    return metrics, page


def evaluate_masks(config, workdir, split, masks):
    """Scores a folder of masks by the same metric and writes the same files except for the sweep.

    Args:
      config: ConfigDict whose `data` and `eval.pictures` are used.
      workdir: pathlib.Path, created if it doesn't exist.
      split: name of the split to score.
      masks: the folder (`rml_jax.evaluation.masks.MaskFolder`).

    Returns:
      Content of metrics.json, and the path of report.html.

    Raises:
      UserError: if the configuration, the data, the work directory or a mask is wrong.
    """
    evaluation = run.score_masks(config, split, masks)
    page = distributed.on_first_process(
        lambda: _write(_make_folder(workdir), evaluation, {"masks": str(masks)})
    )
    return evaluation.metrics, page


def _write(folder, evaluation, facts):
    """Writes the files of an evaluation, scores first. Returns the path of the page."""
    config, metrics, sweep = evaluation.config, evaluation.metrics, evaluation.sweep
    atomic_write(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    first = range(min(config.eval.pictures, metrics["images"]))
    parts, figures = {"The first images": first}, {}
    if "miou" in metrics:
        ranked, figures = _write_mask_scores(folder, evaluation)
        parts |= ranked
    else:  # of an evaluation before
        for name in ("per_class.md", "confusion.png"):
            (folder / name).unlink(missing_ok=True)
    indices = sorted({index for part in parts.values() for index in part})
    drawn = dict(zip(indices, evaluation.samples(indices), strict=True))
    if sweep:
        curve = sweep_figure(sweep)
        figures[f"Choice of the background scores on {sweep['split']}, {sweep['images']} images"] = curve
        atomic_write(folder / "sweep.json", json.dumps(sweep, indent=2) + "\n")
        atomic_write(folder / "sweep.png", curve)
    page = folder / "report.html"
    write_report(
        page,
        title=f"RML on {config.data.name}",
        facts=facts,
        metrics=metrics,
        parts={heading: [drawn[index] for index in indices] for heading, indices in parts.items()},
        figures=figures,
        class_names=config.data.class_names,
        explorer={
            "background": config.eval.background.cam,
            "cell": cell_size(build.stride(config), config.cam.scales),
        },
    )
    shutil.rmtree(folder / _PARTS, ignore_errors=True)
    return page


def _write_mask_scores(folder, evaluation):
    """Writes the scores of classes and the confusion matrix. Returns the worst and best images, and figures."""
    metrics, scores = evaluation.metrics, evaluation.scores
    protocol, stage = best_stage(metrics)
    atomic_write(folder / "per_class.md", class_table(metrics))
    title = f"{metrics['dataset']} {metrics['split']}: {stage} ({protocol})"
    confusion = confusion_figure(scores.matrices[protocol, stage], scores.names, title)
    atomic_write(folder / "confusion.png", confusion)
    worst, best = scores.worst_and_best(protocol, stage, evaluation.config.eval.pictures)
    by = f"by the IoU of stage {stage} ({protocol})"
    ranked = {f"The worst images, {by}": worst, f"The best images, {by}": best}
    return ranked, {f"Confusion matrix of stage {stage} ({protocol})": confusion}


def _make_folder(workdir):
    folder = workdir / "eval"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={workdir}: {error.strerror}, expected a folder to write to") from error
    return folder


def _facts_of_weights(config, weights):
    return {"backbone": build.backbone_name(config), "weights": str(weights)}


def _facts(config):
    return {
        "backbone": build.backbone_name(config),
        "started from": config.model.init_from or "scratch, no pre-trained weights",
        "training": f"{config.train.steps} steps of {config.train.batch_size} images, the first "
        f"{min(config.loss.start_step, config.train.steps)} with the classification loss only",
        "loss weights": ", ".join(f"{name} {weight:g}" for name, weight in term_weights(config.loss).items()),
        "seed": str(config.train.seed),
    }
