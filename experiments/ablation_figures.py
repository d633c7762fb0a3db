"""Draws the figures of an ablation: CAMs of the same validation images by every variant, and training curves.

    python -m experiments.ablation_figures --workdir=DIR --out=FOLDER [--variants=baseline,ciml,...] [--seed=0]

DIR is that of `experiments.ablation`. Writes FOLDER/ablation-cams.png, like the paper's Figure 3, and
FOLDER/ablation-curves.png from every run's TensorBoard files. Also prints the localisation of CAMs and pseudo labels
(`rml_jax.evaluation.localization`). Needs the checkpoints.
"""

import argparse
import io
from pathlib import Path

from matplotlib.figure import Figure

from rml_jax import visualize
from rml_jax.checkpoint import read_params
from rml_jax.config import load_config
from rml_jax.data.sources import make_source
from rml_jax.evaluation.evaluator import Evaluator
from rml_jax.evaluation.localization import SHARES, localization
from rml_jax.models import build
from rml_jax.report.training import read_events
from rml_jax.training.runlog import tag_of
from rml_jax.utils.compilation_cache import use_compilation_cache
from rml_jax.utils.files import atomic_write
from rml_jax.variants import LADDER

CURVES = (
    "classification",
    "equivariance",
    "prototype_similarity",
    "alignment",
    "information_context",
    "context_rank",
    "affinity",
    "information_affinity_label",
    "information_affinity_pair",
    "self_training",
    "labelled_foreground",
    "labelled_background",
    "gradient_norm",
    *(f"validation/{name}" for name in SHARES),
)
_SHOWN, _MEASURED = 8, 400


def main():
    parser = argparse.ArgumentParser("python -m experiments.ablation_figures")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", default=",".join(LADDER))
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    use_compilation_cache()
    runs = {name: chosen.workdir / f"{name}-seed{chosen.seed}" for name in chosen.variants.split(",")}
    chosen.out.mkdir(parents=True, exist_ok=True)
    atomic_write(chosen.out / "ablation-curves.png", curves_figure(runs))
    samples = {name: _samples(folder) for name, folder in runs.items()}
    atomic_write(chosen.out / "ablation-cams.png", cams_figure(samples))
    background = load_config(next(iter(runs.values())) / "config.json").eval.background.cam
    print(localization_table({name: localization(found, background) for name, found in samples.items()}))


def localization_table(variants):
    """Renders the shares as Markdown: one row per variant, in percent.

    Args:
      variants: dict from name to `localization`'s result, at least one.
    """
    heads = list(next(iter(variants.values())))
    lines = ["| variant | " + " | ".join(head.replace("_", " ") for head in heads) + " |"]
    lines.append("|---" * (1 + len(heads)) + "|")
    for name, shares in variants.items():
        lines.append(f"| `{name}` | " + " | ".join(f"{100 * shares[head]:.1f}" for head in heads) + " |")
    return "\n".join(lines)


def cams_figure(samples):
    """Draws one row per image: the image, its annotation, and the tagged classes' strongest CAM by each variant.

    Args:
      samples: dict from a variant's name to Samples of the same images; the first ones are shown.

    Returns:
      bytes of a PNG.
    """
    shown = {name: found[:_SHOWN] for name, found in samples.items()}
    first = next(iter(shown.values()))
    columns = {
        "image": [sample.image for sample in first],
        "annotation": [visualize.overlay(sample.image, sample.ground_truth) for sample in first],
    }
    for name, found in shown.items():
        columns[name] = [visualize.heat_map(sample.image, sample.cam) for sample in found]
    figure = Figure(figsize=(1.3 * len(columns), 1.3 * len(first) + 0.3), layout="constrained", dpi=100)
    panels = figure.subplots(len(first), len(columns), squeeze=False)
    for column, (name, images) in enumerate(columns.items()):
        panels[0, column].set_title(name, fontsize=9)
        for row, image in enumerate(images):
            panels[row, column].imshow(image, interpolation="nearest")
            panels[row, column].set_axis_off()
    return _png(figure)


def curves_figure(runs):
    """Draws the logged terms over the steps, one line per variant.

    Args:
      runs: dict from name to pathlib.Path of a run.

    Returns:
      bytes of a PNG.
    """
    logs = {name: read_events(folder)[0] for name, folder in runs.items()}
    metrics = [metric for metric in CURVES if any(tag_of(metric) in scalars for scalars in logs.values())]
    rows = -(-len(metrics) // 4)
    figure = Figure(figsize=(12, 2.7 * rows), layout="constrained", dpi=80)
    panels = figure.subplots(rows, 4).ravel()
    for panel, metric in zip(panels, metrics, strict=False):
        for name, scalars in logs.items():
            # A variant without the term is drawn as an empty line, so that colours stay the same.
            known = scalars.get(tag_of(metric), {})
            panel.plot(list(known.keys()), list(known.values()), label=name, linewidth=1)
        panel.set_title(metric, fontsize=9)
        panel.grid(alpha=0.3)
    for panel in panels[len(metrics) :]:
        panel.set_axis_off()
    panels[0].legend(fontsize=8)
    return _png(figure)


def _samples(folder):
    config = load_config(folder / "config.json")
    graphdef, abstract = build.build_graph(config)
    _, params = read_params(folder, abstract)
    source = make_source(config.data, config.data.val_split, with_masks=True)
    return Evaluator(config, graphdef).samples(params, source, range(min(_MEASURED, len(source))))


def _png(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


if __name__ == "__main__":
    main()
