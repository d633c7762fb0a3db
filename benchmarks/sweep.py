"""Time of choosing the background's score: all scores of the grid at once, and one after the other.

    python -m benchmarks.sweep [--json FILE] [--variant b0] [--images 8] [--side 200] [--scores 19]

Both ways run the network once for each image and count pixels for the chains cam, par and affinity+par under both
protocols. The network is random and so are its predicted tags; four of five images have one tag of three, the others
two. Compilation is not counted. The scores of both ways must be equal.
"""

import functools

import numpy as np
from flax import nnx

from benchmarks import measure
from rml_jax.config import default_config
from rml_jax.evaluation.evaluator import Evaluator
from rml_jax.evaluation.scores import Scores
from rml_jax.models import build
from rml_jax.stages.runner import TAG_THRESHOLD, StageRunner
from tests.references.networks import random_network

_CLASSES = ("a", "b", "c")


def main():
    chosen, result = measure.start(variant="b0", images=8, side=200, scores=19, repeats=3)
    config = default_config()
    config.data.class_names = _CLASSES
    config.model.variant = chosen.variant
    config.eval.stages = ("cam", "par", "affinity+par")
    config.eval.canvases = ((chosen.side, chosen.side),)
    graphdef, params = nnx.split(random_network(lambda: build.build_model(config, seed=0)))
    items = _items(chosen.images, chosen.side)
    grid = np.linspace(0.05, 0.95, chosen.scores).round(2).tolist()
    evaluator, runner = Evaluator(config, graphdef), StageRunner(config, graphdef)
    found = {}

    def at_once():
        found["at once"] = evaluator.sweep(params, items, range(len(items)), grid, lambda done: None)

    contestants = {
        "at once": at_once,
        "one by one": functools.partial(_one_by_one, config, runner, params, items, grid, found),
    }
    seconds = measure.interleave(contestants, chosen.repeats, warm_up=1)
    if found["at once"] != found["one by one"]:
        raise AssertionError("the scores of the two ways differ")
    result["seconds"] = {name: measure.summary(times) for name, times in seconds.items()}
    medians = [[result["seconds"][name][key] for name in seconds] for key in ("median", "cpu_median")]
    result["ratio"], result["cpu_ratio"] = (slow / fast for fast, slow in medians)
    measure.write_json(result, chosen.json)


def _one_by_one(config, runner, params, items, grid, found):
    batch_size, bases = config.eval.batch_size, runner.stages.bases
    scores = [Scores(("background", *_CLASSES)) for _ in grid]
    params, grouper = runner.replicate(params), runner.grouper(batch_size)
    batches = [batch for index, item in enumerate(items) for batch in grouper.add(index, item)]
    for batch in [*batches, *grouper.rest()]:
        maps, probabilities = runner.maps(params, batch)
        tags = np.stack([item["tags"] for item in batch.items]) > 0
        slots = runner.slots(probabilities > TAG_THRESHOLD, tags)
        for score, background in zip(scores, grid, strict=True):
            for protocol, chosen in zip(("predicted", "given"), slots, strict=True):
                masks = runner.soft(batch, maps, chosen, dict.fromkeys(bases, background))["masks"]
                for base in bases:
                    for mask, (index, item, _) in zip(np.asarray(masks[base]), batch.entries, strict=False):
                        score.add(protocol, base, index, mask, item["mask"])
    found["one by one"] = {
        protocol: {base: [score.mean_iou()[protocol][base] for score in scores] for base in bases}
        for protocol in ("predicted", "given")
    }


def _items(count, side):
    """Returns images of blocks of 8 pixels with noise, and masks of larger blocks."""
    rng = np.random.default_rng(0)
    items = []
    for number in range(count):
        blocks = rng.integers(0, 256, (side // 8 + 1, side // 8 + 1, 3)).repeat(8, axis=0).repeat(8, axis=1)
        image = np.clip(blocks[:side, :side] + rng.normal(0, 10, (side, side, 3)), 0, 255)
        labels = rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), (5, 5))
        mask = labels.repeat(side // 4, axis=0).repeat(side // 4, axis=1)[:side, :side]
        tags = np.zeros(len(_CLASSES), np.float32)
        tags[rng.permutation(len(_CLASSES))[: 1 + (number % 5 == 4)]] = 1
        items.append({"id": str(number), "image": image.astype(np.uint8), "mask": mask, "tags": tags})
    return items


if __name__ == "__main__":
    main()
