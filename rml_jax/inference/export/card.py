"""The model card: training data and settings, scores, limits and licence of an exported model."""

import json

from rml_jax.data.sources import SOURCES, DataLayout
from rml_jax.models import build
from rml_jax.stages.runner import PROTOCOLS
from rml_jax.utils.errors import UserError

CARD, METRICS = "MODEL_CARD.md", "metrics.json"


def model_card(config, step, metrics, differences, content, licence="other"):
    """Returns the text of MODEL_CARD.md.

    Args:
      config: ConfigDict of the run.
      step: training step of the weights.
      metrics: content of the run's eval/metrics.json, or None.
      differences: from `verify`.
      content: one sentence that describes the files.
      licence: the Hugging Face hub's identifier of the model's licence.

    Returns:
      Markdown with the hub's header of metadata. The licence of the training data is that of its `DataLayout`, or
      "None stated." if the layout is not registered in this process.
    """
    data, train = config.data, config.train
    verified = ", ".join(f"{name} {difference:.1e}" for name, difference in differences.items())
    names = ", ".join(data.class_names)
    return f"""{_header(data, licence)}
# {data.name}: semantic segmentation learned from image-level tags

{content}

| | |
|---|---|
| method | Representation Mutual Learning (weakly supervised: tags, no masks), implementation rml_jax |
| network | {build.backbone_name(config)}, started from {config.model.init_from or "scratch"} |
| data set | {data.name}, training split {data.train_split} |
| classes | {len(data.class_names)} and background: {names} |
| step | {step} of {train.steps}, {train.batch_size} images each, crop {train.crop_size} |
| seed | {train.seed} |
| verified | largest differences from the live model on test images: {verified} (masks: share of pixels) |

## Scores

{_scores(step, metrics)}

## Intended use and limits

The model labels every pixel of an image with one of the classes above or background. It was trained on tags alone:
outlines are coarser than those of networks trained on masks, objects that always occur together may be confused, and
no other classes are recognised. It was not evaluated for fairness or safety-critical use.

## Licence of the training data

{SOURCES.get(data.source, DataLayout).licence}
"""


def _header(data, licence):
    # The values are JSON, which YAML contains.
    lines = {
        "library_name": "rml_jax",
        "pipeline_tag": "image-segmentation",
        "license": licence,
        **({"license_name": "see-this-card"} if licence == "other" else {}),
        "datasets": [data.name],
        "tags": ["weakly-supervised-semantic-segmentation", "jax"],
    }
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in lines.items()), "---"]) + "\n"


def _scores(step, metrics):
    if metrics is None:
        return "Not scored: the run had no eval/metrics.json (`rml-jax eval --workdir=DIR`)."
    scored = f"{metrics['dataset']} {metrics['split']}, {metrics['images']} images, step {metrics['step']}"
    if "miou" not in metrics:
        tags = metrics["classification"]
        return f"Tags alone, in percent on {scored}: F1 {100 * tags['f1']:.1f}, mAP {100 * tags['map']:.1f}."
    miou = {protocol: metrics["miou"][protocol] for protocol in PROTOCOLS if protocol in metrics["miou"]}
    lines = [
        f"mIoU in percent on {scored}"
        + ("." if metrics["step"] == step else f" (**not the exported step {step}**).")
        + " *Predicted*: the model decides which classes an image may hold. *Given*: the ground truth's tags decide.",
        "",
        "| stage | " + " | ".join(f"{protocol} tags" for protocol in miou) + " |",
        "|---" * (1 + len(miou)) + "|",
    ]
    for stage in next(iter(miou.values())):
        values = " | ".join(f"{100 * stages[stage]:.1f}" for stages in miou.values())
        lines.append(f"| {stage} | {values} |")
    return "\n".join(lines)


def read_metrics(workdir):
    """Reads a checkpoint's scores: eval/metrics.json of a run or metrics.json of an export; None if there are none.

    Raises:
      UserError: if the file is damaged.
    """
    found = [path for path in (workdir / "eval" / METRICS, workdir / METRICS) if path.exists()]
    if not found:
        return None
    try:
        metrics = json.loads(found[0].read_text(encoding="utf-8"))
        return metrics if "step" in metrics else None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{found[0]}: {error}, expected what `rml-jax eval` writes") from error
