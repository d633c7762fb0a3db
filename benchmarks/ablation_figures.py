"""Figures of an ablation: CAMs of the same validation pictures by every variant, and curves over training.

    python -m benchmarks.ablation_figures --workdir=DIR --out=FOLDER [--variants=baseline,ciml,...] [--seed=0]

DIR is that of `benchmarks.ablation`. Writes FOLDER/ablation-cams.png, like the paper's Figure 3, and
FOLDER/ablation-curves.png from every run's metrics.jsonl. Needs the checkpoints.
"""

import argparse
import io
import json
from pathlib import Path

from matplotlib.figure import Figure

from rml_jax import build, files, visualize
from rml_jax.compilation_cache import use_compilation_cache
from rml_jax.config import load_config
from rml_jax.data.sources import make_source
from rml_jax.evaluation.evaluator import Evaluator
from rml_jax.training.checkpoint import Checkpoints
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
    "labelled_foreground",
    "labelled_background",
    "gradient_norm",
)
_PICTURES = 6


def main():
    parser = argparse.ArgumentParser("python -m benchmarks.ablation_figures")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", default=",".join(LADDER))
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    use_compilation_cache()
    runs = {name: chosen.workdir / f"{name}-seed{chosen.seed}" for name in chosen.variants.split(",")}
    chosen.out.mkdir(parents=True, exist_ok=True)
    files.write(chosen.out / "ablation-curves.png", curves_figure(runs))
    files.write(chosen.out / "ablation-cams.png", cams_figure(runs))


def cams_figure(runs):
    """One row a picture: the picture, its annotation, and the given classes' strongest CAM by each variant.

    Args:
      runs: dict from name to pathlib.Path of a run, all of one data set.

    Returns:
      bytes of a PNG.
    """
    columns = {name: _samples(folder) for name, folder in runs.items()}
    first = next(iter(columns.values()))
    pictures = {
        "image": [sample.image for sample in first],
        "annotation": [visualize.overlay(sample.image, sample.ground_truth) for sample in first],
    } | {
        name: [visualize.heat_map(sample.image, sample.cam) for sample in samples]
        for name, samples in columns.items()
    }
    figure = Figure(figsize=(1.3 * len(pictures), 1.3 * len(first) + 0.3), layout="constrained", dpi=100)
    panels = figure.subplots(len(first), len(pictures), squeeze=False)
    for column, (name, images) in enumerate(pictures.items()):
        panels[0, column].set_title(name, fontsize=9)
        for row, image in enumerate(images):
            panels[row, column].imshow(image, interpolation="nearest")
            panels[row, column].set_axis_off()
    return _png(figure)


def curves_figure(runs):
    """Every term over the steps with all terms, one line a variant.

    Args:
      runs: dict from name to pathlib.Path of a run with a metrics.jsonl.

    Returns:
      bytes of a PNG.
    """
    figure = Figure(figsize=(12, 8), layout="constrained", dpi=80)
    panels = figure.subplots(3, 4).ravel()
    for name, folder in runs.items():
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        entries = [json.loads(line) for line in lines]
        for panel, metric in zip(panels, CURVES, strict=True):
            known = [(entry["step"], entry[metric]) for entry in entries if metric in entry]
            panel.plot(*zip(*known, strict=True) if known else ((), ()), label=name, linewidth=1)
    for panel, metric in zip(panels, CURVES, strict=True):
        panel.set_title(metric, fontsize=9)
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    return _png(figure)


def _samples(folder):
    config = load_config(folder / "config.json")
    graphdef, abstract = build.build_graph(config)
    checkpoints = Checkpoints(folder)
    _, params = checkpoints.restore_params(abstract)
    checkpoints.close()
    source = make_source(config.data, config.data.val_split, with_masks=True)
    return Evaluator(config, graphdef).samples(params, source, range(_PICTURES))


def _png(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


if __name__ == "__main__":
    main()
