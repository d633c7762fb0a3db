"""Scores a training run's last checkpoint, or a file of weights, and writes what came out into a work directory."""

import json

import jax
import jax.numpy as jnp

from rml_jax import build
from rml_jax.config import check_config
from rml_jax.data.sources import make_source, with_class_names
from rml_jax.errors import UserError
from rml_jax.evaluation.evaluator import Evaluator
from rml_jax.models.pretrained import load_weights
from rml_jax.progress import Progress
from rml_jax.report import write_report
from rml_jax.training.checkpoint import Checkpoints


def evaluate_run(config, workdir, split, weights=""):
    """Scores the newest checkpoint or other weights; writes `eval/metrics.json` and `eval/report.html`.

    Args:
      config: ConfigDict of the run, perhaps with overrides.
      workdir: pathlib.Path of the run; made if it doesn't exist and weights are given.
      split: name of the split to score.
      weights: file to score rather than the checkpoint (`rml_jax.models.pretrained` says which); "" for none.

    Returns:
      The content of metrics.json (see `rml_jax.report`), and the path of the page of pictures.

    Raises:
      UserError: if the configuration, the data, the work directory or the weights are not as expected.
    """
    config = with_class_names(config)
    check_config(config)
    source = make_source(config.data, split, with_masks=True)
    graphdef, abstract = build.build_graph(config)
    if weights:
        model, params = {"weights": str(weights)}, _load_for_scoring(config, abstract, weights)
    else:
        checkpoints = Checkpoints(workdir)
        step, params = checkpoints.restore_params(abstract)
        checkpoints.close()
        model = {"step": step}

    folder = _make_folder(workdir)
    evaluator = Evaluator(config, graphdef)
    progress = Progress("eval", len(source), "images")
    scores = evaluator.evaluate(params, source, progress.update)
    metrics = {"dataset": config.data.name, "split": split, **model, **scores}
    samples = evaluator.samples(params, source, config.eval.pictures)

    temporary = folder / "metrics.json.tmp"
    temporary.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / "metrics.json")
    page = folder / "report.html"
    write_report(
        page,
        title=f"RML on {config.data.name}",
        facts=_facts_of_weights(config, weights) if weights else _facts(config),
        metrics=metrics,
        samples=samples,
        class_names=config.data.class_names,
    )
    return metrics, page


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
    needed = ("backbone/", "classifier/") + (("affinity/",) if "affinity" in config.eval.stages else ())
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
        f"{min(config.loss.warmup_steps, config.train.steps)} on classification alone",
        "loss weights": ", ".join(f"{name} {weight:g}" for name, weight in weights.items()),
        "seed": str(config.train.seed),
    }
