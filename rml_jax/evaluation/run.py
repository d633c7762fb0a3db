"""Scoring of a run's checkpoint, a file of weights or a folder of masks."""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from rml_jax.checkpoint import read_params
from rml_jax.data.fingerprint import pack_items
from rml_jax.data.masks import check_masks
from rml_jax.data.sources import SkipBad, has_masks, make_source, with_class_names
from rml_jax.data.summary import item_tags
from rml_jax.evaluation.evaluator import Evaluator
from rml_jax.evaluation.masks import MaskFolder
from rml_jax.evaluation.parts import PartFolder
from rml_jax.evaluation.samples import Sample
from rml_jax.evaluation.scores import Scores
from rml_jax.evaluation.sweep import CONTRAST_STAGE, draw_images
from rml_jax.models import build
from rml_jax.models.weights import load_weights
from rml_jax.stages.registry import base_stage, parse_stage, stage_needs
from rml_jax.utils import distributed, provenance
from rml_jax.utils.errors import UserError
from rml_jax.utils.progress import Progress
from rml_jax.utils.trees import digest
from rml_jax.validate import check_config


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A network to score and the data to score it on.

    Attributes:
      config: ConfigDict with its class names.
      split, source: name of the split, and its images, with masks if there are any.
      swept: source of the images on which the background scores are chosen, or None.
      graphdef, params: the network.
      origin: origin of the parameters, {"step": ...} or {"weights": ...}.
    """

    config: ConfigDict
    split: str
    source: Any
    swept: Any
    graphdef: nnx.GraphDef
    params: nnx.State
    origin: dict


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Results of an evaluation.

    Attributes:
      config: ConfigDict with its class names.
      metrics: content of metrics.json (docs/evaluation.md).
      scores: the accumulated scores.
      samples: function from the indices of images to their Samples.
      sweep: content of sweep.json, or None.
    """

    config: ConfigDict
    metrics: dict
    scores: Scores
    samples: Callable[[Sequence[int]], list[Sample]]
    sweep: dict | None = None


def load_candidate(config, workdir, split, weights=""):
    """Opens the data and loads the parameters, without writing.

    Args:
      config: ConfigDict of the run, possibly with overrides.
      workdir: pathlib.Path of the run.
      split: name of the split to score.
      weights: file to score instead of the checkpoint that `eval.checkpoint` names; "" for none.

    Returns:
      Candidate.

    Raises:
      UserError: if the configuration, the data, the work directory or the weights are wrong.
    """
    config = with_class_names(config)
    check_config(config)
    source = _open_split(config.data, split)
    swept = None
    if config.eval.sweep.split:
        by_masks = config.eval.sweep.criterion == "miou"
        swept = make_source(config.data, config.eval.sweep.split, with_masks=by_masks)
    graphdef, abstract = build.build_graph(config)
    if weights:
        origin, params = {"weights": str(weights)}, _load_for_scoring(config, abstract, weights)
    else:
        step, params = read_params(workdir, abstract, config.eval.checkpoint, config.checkpoint.best_metric)
        origin = {"step": step}
    return Candidate(config, split, source, swept, graphdef, params, origin)


def _open_split(data_config, split):
    """Opens a split with its masks, which are checked, or without if there are none: tags alone are scored then."""
    if has_masks(data_config, split):
        source = make_source(data_config, split, with_masks=True)
        check_masks(source, data_config)
        return source
    source = make_source(data_config, split, with_masks=False)
    return (
        source.source if isinstance(source, SkipBad) else source
    )  # An image in place of a bad one counts twice.


def score_candidate(candidate, folder, save=None):
    """Predicts and scores all images of a split, together with the other processes if there are any.

    Args:
      candidate: Candidate.
      folder: pathlib.Path of a folder on storage that all processes share, for the results of some images each: an
        evaluation that was stopped goes on with what is there. The caller removes it at the end.
      save: function called with every predicted mask (`rml_jax.evaluation.masks.MaskWriter`), or None.

    Returns:
      Evaluation.
    """
    config, params, source = candidate.config, candidate.params, candidate.source
    evaluator = Evaluator(config, candidate.graphdef)
    weights = digest(params)
    backgrounds, chosen_on, sweep = evaluator.fixed_backgrounds(), "fixed", None
    if candidate.swept:
        sweep = _sweep(config, evaluator, params, candidate.swept, folder / "sweep", weights)
        by = ", by contrast" if sweep["criterion"] == "contrast" else ""
        backgrounds, chosen_on = sweep["best"], f"chosen on {sweep['split']} ({sweep['images']} images{by})"
    facts = {"parameters": weights, "split": candidate.split, "backgrounds": backgrounds, "saves": bool(save)}
    parts = _open_parts(folder / "scores", config, source, facts)
    progress = _progress("eval", len(source), parts)
    scores = evaluator.evaluate(params, source, backgrounds, progress, save, parts)
    metrics = {
        "dataset": config.data.name,
        "split": candidate.split,
        **candidate.origin,
        **_scores(scores),
        "background": {
            protocol: {
                stage: {
                    "score": backgrounds[protocol][base_stage(stage)],
                    "chosen_on": chosen_on,
                    **(
                        {"region_contrast": config.eval.region_contrast}
                        if config.eval.region_contrast
                        else {}
                    ),
                }
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

    def samples(indices):
        return evaluator.samples(params, source, indices, backgrounds, with_class_cams=True)

    return Evaluation(config, metrics, scores, samples, sweep)


def score_masks(config, split, masks):
    """Scores a folder of masks.

    Args:
      config: ConfigDict whose `data` is used.
      split: name of the split to score.
      masks: the folder (`rml_jax.evaluation.masks.MaskFolder`).

    Returns:
      Evaluation.

    Raises:
      UserError: if the configuration, the data or a mask is wrong.
    """
    config = with_class_names(config)
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

    def samples(indices):
        return [_mask_sample(source[index], masks_by_id, names) for index in indices]

    return Evaluation(config, metrics, scores, samples)


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


def _open_parts(folder, config, source, facts, count=1):
    """Opens the folder of an evaluation's parts, which are discarded if anything that they depend on has changed."""
    settings = json.loads(config.to_json_best_effort())
    of_results = ("augment", "cam", "data", "eval", "model", "pseudo_label")
    items = item_tags(source)
    facts = {
        **facts,
        **{group: settings[group] for group in of_results},
        "radius": settings["loss"]["radius"],
        "images": len(source),
        "items": items and pack_items(items),
        "versions": provenance.versions(),
    }
    parts = PartFolder(folder, facts, ("background", *config.data.class_names), count)
    distributed.on_first_process(parts.open)
    return parts


def _progress(name, total, parts):
    """Returns the function that shows the number of images done, on the first process."""
    done = len(parts.load().tags)
    if done and distributed.is_first():
        print(f"{name}: goes on after {done} of {total} images", file=sys.stderr)
    return distributed.on_first(Progress(name, total, "images", start=done).update)


def _sweep(config, evaluator, params, source, folder, weights):
    """Returns the content of sweep.json: a criterion over background scores, and the best score of each stage."""
    settings = config.eval.sweep
    indices = draw_images(source, settings.images or len(source), config.data.seed)
    facts = {"parameters": weights, "split": settings.split, "drawn": indices, "grid": list(settings.grid)}
    parts = _open_parts(folder, config, source, facts, len(settings.grid))
    progress = _progress(f"sweep on {settings.split}", len(indices), parts)
    curves = evaluator.sweep(params, source, indices, settings.grid, progress, parts)
    best = {
        protocol: {
            stage: max(zip(scores, settings.grid, strict=True), key=lambda pair: pair[0])[1]
            for stage, scores in stages.items()
        }
        for protocol, stages in curves.items()
    }
    if settings.criterion == "contrast":  # All stages take the score of one.
        bases = list(map(base_stage, config.eval.stages))
        best = {protocol: dict.fromkeys(bases, scores[CONTRAST_STAGE]) for protocol, scores in best.items()}
    return {
        "split": settings.split,
        "images": len(indices),
        "grid": list(settings.grid),
        "criterion": settings.criterion,
        settings.criterion: curves,
        "best": best,
    }


def _scores(scores):
    classification = {"classification": scores.classification} if scores.classification else {}
    if not scores.matrices:
        return {"images": scores.images, **classification}
    return {
        "images": scores.images,
        **scores.coverage(),
        **classification,
        "miou": scores.mean_iou(),
        "iou": scores.iou(),
    }


def _origin(config):
    """Returns the provenance of the scores: settings, seeds, code, libraries and devices."""
    return {
        "seeds": {"train": config.train.seed, "data": config.data.seed},
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "devices": provenance.devices(),
        "cam_dtype": "mixed" if build.has_mixed_cams(config) else config.model.dtype,
        "settings": json.loads(config.to_json_best_effort()),
    }


def _load_for_scoring(config, abstract, path):
    """Loads parameters from a file, which must have every head that the stages use."""
    params, report = load_weights(abstract, path)
    print(report)
    walks = any("affinity" in stage_needs(stage) for stage in config.eval.stages)
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
