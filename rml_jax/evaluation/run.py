"""Scores a training run's last checkpoint and writes what came out into its work directory."""

import json

from rml_jax import build
from rml_jax.config import check_config
from rml_jax.data.sources import make_source
from rml_jax.evaluation.evaluator import Evaluator
from rml_jax.progress import Progress
from rml_jax.report import write_report
from rml_jax.training.checkpoint import Checkpoints


def evaluate_run(config, workdir, split):
    """Scores the newest checkpoint; writes `eval/metrics.json` and `eval/report.html`.

    Args:
      config: ConfigDict of the run, perhaps with overrides.
      workdir: pathlib.Path of the run.
      split: name of the split to score.

    Returns:
      The content of metrics.json (see `rml_jax.report`), and the path of the page of pictures.

    Raises:
      UserError: if the configuration, the data or the work directory is not as expected.
    """
    check_config(config)
    source = make_source(config.data, split, with_masks=True)
    graphdef, abstract = build.build_graph(config)
    checkpoints = Checkpoints(workdir)
    step, params = checkpoints.restore_params(abstract)
    checkpoints.close()

    evaluator = Evaluator(config, graphdef)
    progress = Progress("eval", len(source), "images")
    scores = evaluator.evaluate(params, source, progress.update)
    metrics = {"dataset": config.data.name, "split": split, "step": step, **scores}
    samples = evaluator.samples(params, source, config.eval.pictures)

    folder = workdir / "eval"
    folder.mkdir(exist_ok=True)
    temporary = folder / "metrics.json.tmp"
    temporary.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / "metrics.json")
    page = folder / "report.html"
    write_report(
        page,
        title=f"RML on {config.data.name}",
        facts=_facts(config),
        metrics=metrics,
        samples=samples,
        class_names=config.data.class_names,
    )
    return metrics, page


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
