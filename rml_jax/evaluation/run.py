"""Scores a training run's checkpoint, a file of weights or a folder of masks; writes what came out of it."""

import json

import jax
import jax.numpy as jnp

from rml_jax.checkpoint import read_params
from rml_jax.data.sources import check_masks, make_source, with_class_names
from rml_jax.evaluation.evaluator import Evaluator, Scores
from rml_jax.evaluation.masks import MaskFolder, MaskWriter
from rml_jax.evaluation.plots import confusion_picture, sweep_picture
from rml_jax.models import build
from rml_jax.models.weights import load_weights
from rml_jax.report import Sample, best_stage, class_table, write_report
from rml_jax.stages.stages import before_crf, parse_stage
from rml_jax.utils import provenance
from rml_jax.utils.errors import UserError
from rml_jax.utils.files import atomic_write
from rml_jax.utils.progress import Progress
from rml_jax.validate import check_config


def evaluate_run(config, workdir, split, weights="", save_masks=False):
    """Scores the checkpoint that `eval.checkpoint` names, or other weights.

    Writes into `eval/` metrics.json, report.html, per_class.md, confusion.png (of the best stage) and, where the
    background scores are swept, sweep.json and sweep.png.

    Args:
      config: ConfigDict of the run, perhaps with overrides.
      workdir: pathlib.Path of the run; made if it doesn't exist and weights are given.
      split: name of the split to score.
      weights: file to score rather than the checkpoint (`rml_jax.models.weights` says which); "" for none.
      save_masks: whether to write every predicted mask to `eval/masks/` (`rml_jax.evaluation.masks.MaskWriter`).

    Returns:
      The content of metrics.json (see `rml_jax.report`), and the path of the page of pictures.

    Raises:
      UserError: if the configuration, the data, the work directory or the weights are not as expected.
    """
    config = with_class_names(config)
    check_config(config)
    source = make_source(config.data, split, with_masks=True)
    check_masks(source, config.data)
    swept = (
        make_source(config.data, config.eval.sweep.split, with_masks=True)
        if config.eval.sweep.split
        else None
    )
    graphdef, abstract = build.build_graph(config)
    if weights:
        model, params = {"weights": str(weights)}, _load_for_scoring(config, abstract, weights)
    else:
        step, params = read_params(workdir, abstract, config.eval.checkpoint, config.checkpoint.best_metric)
        model = {"step": step}

    folder = _make_folder(workdir)
    evaluator = Evaluator(config, graphdef)
    backgrounds, chosen_on, sweep = evaluator.fixed_backgrounds(), "fixed", None
    if swept:
        sweep = _sweep(config, evaluator, params, swept)
        backgrounds, chosen_on = sweep["best"], f"chosen on {sweep['split']} ({sweep['images']} images)"
    save = MaskWriter(folder / "masks", split, tuple(config.data.mask_values)) if save_masks else None
    progress = Progress("eval", len(source), "images")
    scores = evaluator.evaluate(params, source, backgrounds, progress.update, save)
    metrics = {"dataset": config.data.name, "split": split, **model, **_scores(scores)} | {
        "background": {
            protocol: {
                stage: {"score": backgrounds[protocol][before_crf(stage)], "chosen_on": chosen_on}
                for stage in config.eval.stages
            }
            for protocol in config.eval.protocols
        },
        "chains": {stage: ["cam", *parse_stage(stage)] for stage in config.eval.stages},
        "canvases": {f"{height}x{width}": n for (height, width), n in sorted(evaluator.canvases.items())},
        "programs": len(evaluator.programs),
        "resized": sorted(evaluator.resized),
        **_origin(config),
    }
    facts = _facts_of_weights(config, weights) if weights else _facts(config)
    canvases = len(evaluator.canvases)
    facts["programs compiled"] = (
        f"{metrics['programs']}, for {canvases} canvas{'' if canvases == 1 else 'es'}"
    )
    if evaluator.resized:
        facts["resized"] = f"{len(evaluator.resized)} images, which fit on no canvas or are too small"

    def draw(indices):
        return evaluator.samples(params, source, indices, backgrounds)

    return metrics, _write(config, folder, metrics, scores, facts, draw, sweep)


def evaluate_masks(config, workdir, split, masks):
    """Scores a folder of masks made by anyone, by the same ruler; writes the same files without the sweep.

    Args:
      config: ConfigDict whose `data` and `eval.pictures` are used.
      workdir: pathlib.Path, made if it doesn't exist.
      split: name of the split to score.
      masks: the folder (`rml_jax.evaluation.masks.MaskFolder`).

    Returns:
      The content of metrics.json (see `rml_jax.report`), and the path of the page of pictures.

    Raises:
      UserError: if the configuration, the data, the work directory or a mask is not as expected.
    """
    check_config(config)
    source = make_source(config.data, split, with_masks=True)
    check_masks(source, config.data)
    names = tuple(config.data.class_names)
    masks_by_id = MaskFolder(masks, config.data.mask_values, len(names), config.data.mask_ignore)
    scores = Scores(("background", *names))
    progress = Progress("eval", len(source), "images")
    for index in range(len(source)):
        item = source[index]
        scores.add("files", "masks", index, masks_by_id.read(item["id"], item["mask"].shape), item["mask"])
        progress.update(index + 1)
    scores.images = len(source)
    metrics = {
        "dataset": config.data.name,
        "split": split,
        "masks": str(masks),
        **_scores(scores),
        **_origin(config),
    }

    def draw(indices):
        return [_mask_sample(source[index], masks_by_id, names) for index in indices]

    return metrics, _write(config, _make_folder(workdir), metrics, scores, {"masks": str(masks)}, draw)


def _mask_sample(item, masks_by_id, names):
    mask = masks_by_id.read(item["id"], item["mask"].shape)
    return Sample(
        id=item["id"],
        image=item["image"],
        tags=tuple(name for name, tag in zip(names, item["tags"], strict=True) if tag),
        predicted_tags=tuple(name for number, name in enumerate(names, 1) if (mask == number).any()),
        cam=None,
        pseudo_label=None,
        predictions={"masks": mask},
        ground_truth=item["mask"],
    )


def _sweep(config, evaluator, params, source):
    """The sweep's curves and what is best on them, as in sweep.json."""
    settings = config.eval.sweep
    count = min(settings.images or len(source), len(source))
    progress = Progress(f"sweep on {settings.split}", count, "images")
    curves = evaluator.sweep(params, source, count, settings.grid, progress.update)
    best = {
        protocol: {
            stage: max(zip(scores, settings.grid, strict=True), key=lambda pair: pair[0])[1]
            for stage, scores in stages.items()
        }
        for protocol, stages in curves.items()
    }
    return {
        "split": settings.split,
        "images": count,
        "grid": list(settings.grid),
        "miou": curves,
        "best": best,
    }


def _scores(scores):
    classification = {"classification": scores.classification} if scores.classification else {}
    return {
        "images": scores.images,
        **scores.coverage(),
        **classification,
        "miou": scores.mean_iou(),
        "iou": scores.iou(),
    }


def _origin(config):
    """What the scores came from: settings, seeds, code, libraries and devices."""
    return {
        "seeds": {"train": config.train.seed, "data": config.data.seed},
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "devices": provenance.devices(),
        "settings": json.loads(config.to_json_best_effort()),
    }


def _write(config, folder, metrics, scores, facts, draw, sweep=None):
    """Writes the files of an evaluation, scores first. Returns the page's path."""
    atomic_write(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    atomic_write(folder / "per_class.md", class_table(metrics))
    if sweep:
        atomic_write(folder / "sweep.json", json.dumps(sweep, indent=2) + "\n")
    protocol, stage = best_stage(metrics)
    worst, best = scores.worst_and_best(protocol, stage, config.eval.pictures)
    first = range(min(config.eval.pictures, metrics["images"]))
    drawn = dict(zip(indices := sorted({*first, *worst, *best}), draw(indices), strict=True))
    confusion = confusion_picture(
        scores.matrices[protocol, stage],
        scores.names,
        f"{metrics['dataset']} {metrics['split']}: {stage} ({protocol})",
    )
    figures = {f"Confusion matrix of stage {stage} ({protocol})": confusion}
    atomic_write(folder / "confusion.png", confusion)
    if sweep:
        curve = sweep_picture(sweep)
        figures[f"Choice of the background scores on {sweep['split']}, {sweep['images']} images"] = curve
        atomic_write(folder / "sweep.png", curve)
    by = f"by the IoU of stage {stage} ({protocol})"
    parts = {"The first images": first, f"The worst images, {by}": worst, f"The best images, {by}": best}
    page = folder / "report.html"
    write_report(
        page,
        title=f"RML on {config.data.name}",
        facts=facts,
        metrics=metrics,
        parts={heading: [drawn[index] for index in indices] for heading, indices in parts.items()},
        figures=figures,
        class_names=config.data.class_names,
    )
    return page


def _make_folder(workdir):
    folder = workdir / "eval"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={workdir}: {error.strerror}, expected a folder to write to") from error
    return folder


def _load_for_scoring(config, abstract, path):
    """Parameters from a file that must have every head that the stages use."""
    params, report = load_weights(abstract, path)
    print(report)
    walks = any("affinity" in parse_stage(stage) for stage in config.eval.stages)
    needed = ("backbone/", "classifier/") + (("affinity/",) if walks else ())
    for name, reason in report.fresh.items():
        if name.startswith(needed):
            raise UserError(
                f"{path}: {name} is {reason}; the stages {', '.join(config.eval.stages)} can't be scored without it "
                "(config.eval.stages, config.data.class_names)"
            )
    return jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf,
        params,
    )


def _facts_of_weights(config, weights):
    return {"backbone": f"MiT {config.model.variant}", "weights": str(weights)}


def _facts(config):
    weights = {name: config.loss[name] for name in ("ciml", "mfml", "apml")}
    return {
        "backbone": f"MiT {config.model.variant}",
        "started from": config.model.init_from or "scratch, no pre-trained weights",
        "training": f"{config.train.steps} steps of {config.train.batch_size} images, the first "
        f"{min(config.loss.start_step, config.train.steps)} on classification alone",
        "loss weights": ", ".join(f"{name} {weight:g}" for name, weight in weights.items()),
        "seed": str(config.train.seed),
    }
