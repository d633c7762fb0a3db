"""Measures how well a backbone tells classes apart: logistic regression on its frozen features.

    python -m experiments.distill.probe WEIGHTS|random|teacher --config.data.root=VOC2012 [--json=FILE]

Features are the last map's mean over each photograph, resized to SIDE pixels. The regression is trained on the
training photographs that have exactly one tag, and scored on those of the validation part.
"""

from pathlib import Path

import jax
import numpy as np
from flax import nnx
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks import measure
from rml_jax.commands import cli
from rml_jax.data.sources import make_source, with_class_names
from rml_jax.models import BACKBONES, RML, RMLConfig
from rml_jax.models.weights import load_weights
from rml_jax.ops import normalize
from rml_jax.utils.progress import Progress

_BATCH = 16


@cli.command
def main(arguments=None):
    parser = cli.Parser("python -m experiments.distill.probe", description=__doc__)
    parser.add_config(without="voc_animals")
    parser.add_argument("weights", help="file, `random` or `teacher`")
    parser.add_argument("--variant", default="b0")
    parser.add_argument("--side", type=int, default=160)
    parser.add_argument("--json", type=Path)
    chosen, config = parser.parse_config(arguments, default="voc_animals")
    cli.start_jax(config)
    config = with_class_names(config)
    compute = (
        _teacher_features() if chosen.weights == "teacher" else _features(chosen.weights, chosen.variant)
    )
    parts = {
        part: features(make_source(config.data, split, with_masks=False), compute, chosen.side)
        for part, split in (("train", config.data.train_split), ("val", config.data.val_split))
    }
    result = {"environment": measure.environment(), "weights": chosen.weights, "side": chosen.side}
    measure.write_json(result | probe(parts["train"], parts["val"]), chosen.json)


def probe(train, val):
    """Computes the accuracy of a logistic regression.

    Args:
      train, val: features [N, D] and the class of each, int [N].

    Returns:
      Dict of `accuracy` in 0..1, `largest_class` (the share of the most frequent class), `train` and `val`, the
      numbers of photographs.
    """
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    model.fit(*train)
    return {
        "accuracy": float(model.score(*val)),
        "largest_class": float(np.bincount(val[1]).max() / len(val[1])),
        "train": len(train[1]),
        "val": len(val[1]),
    }


def features(source, compute, side):
    """Computes the features of a source's images with one tag.

    Args:
      source: random-access source.
      compute: function from images, uint8 [B, S, S, 3], to [B, D].
      side: S.

    Returns:
      float [N, D] and the class of each, int [N].
    """
    progress, images, found, classes = Progress("features", len(source), "images"), [], [], []
    for index in range(len(source)):
        item = source[index]
        if item["tags"].sum() == 1:
            images.append(
                np.asarray(Image.fromarray(item["image"]).resize((side, side), Image.Resampling.BILINEAR))
            )
            classes.append(int(item["tags"].argmax()))
        if len(images) == _BATCH or (images and index == len(source) - 1):
            filled = np.stack(images + images[:1] * (_BATCH - len(images)))  # One shape, one program.
            found.append(np.asarray(compute(filled))[: len(images)])
            images = []
        progress.update(index + 1)
    return np.concatenate(found), np.array(classes)


def _features(weights, variant):
    config = RMLConfig(backbone=BACKBONES[variant](drop_path_rate=0.0), num_classes=1)
    graphdef, params = nnx.split(RML(config, rngs=nnx.Rngs(0)))
    if weights != "random":
        params, report = load_weights(params, weights)
        print(report)
    return jax.jit(
        lambda images: nnx.merge(graphdef, params)(normalize(images), with_context=False).features.mean(
            (1, 2)
        )
    )


def _teacher_features():
    from experiments.distill.teacher import load_teacher

    run = load_teacher()
    return lambda images: run(images)[1].mean(axis=(1, 2))


if __name__ == "__main__":
    main()
