"""The evaluator on a small random network: batches, sizes, protocols."""

import jax
import numpy as np
import pytest
from flax import nnx

from rml_jax import build as build_module
from rml_jax.config import default_config
from rml_jax.errors import UserError
from rml_jax.evaluation import evaluator as evaluator_module
from rml_jax.evaluation.evaluator import Evaluator, nearest_canvas

CLASSES = ("ant", "bee", "cow")
STAGES = ("cam", "affinity", "par")
# Height and width of the pictures: two near the square canvas, three near the wide one.
SIZES = [(40, 40), (30, 47), (32, 48), (33, 32), (20, 60)]


def make_config(batch_size):
    config = default_config()
    config.data.class_names = CLASSES
    config.model.variant = "mini"
    config.cam.scales, config.cam.flip = (1.0,), False
    config.pseudo_label.dilations, config.pseudo_label.iterations = (1, 2), 2
    config.loss.radius = 2
    config.eval.canvases = ((32, 32), (32, 48))
    config.eval.background = {"cam": 0.4, "affinity": 0.2, "par": 0.3}
    config.eval.batch_size = batch_size
    return config


class Source:
    """Pictures of noise with random masks of background, class 1 and class 2; class 3 never occurs."""

    def __init__(self, tags=None):
        rng = np.random.default_rng(0)
        self.items = []
        for number, size in enumerate(SIZES):
            item = {
                "id": f"picture_{number}",
                "image": rng.integers(0, 256, (*size, 3)).astype(np.uint8),
                "mask": rng.choice(np.array([0, 1, 2, 255], np.uint8), size),
                "tags": np.array([1, 1, 0], np.float32),
            }
            if tags is not None:
                item["tags"] = np.asarray(tags[number], np.float32)
            self.items.append(item)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


@pytest.fixture(scope="module")
def network(build):
    """graphdef and parameters whose logits lie on both sides of 0."""
    return nnx.split(build(lambda: build_module.build_model(make_config(1), seed=0)))


class Counted(Evaluator):
    """An evaluator that counts its traces and remembers the masks that it scored."""

    def __init__(self, config, graphdef, monkeypatch):
        self.traces, self.scored = [], []
        make_predict, confusion_matrix = (
            evaluator_module.make_predict,
            evaluator_module.metrics.confusion_matrix,
        )

        def counting(*arguments):
            predict = make_predict(*arguments)

            def traced(params, images, tags):
                self.traces.append(images.shape)
                return predict(params, images, tags)

            return traced

        def scoring(mask, annotation, count):
            self.scored.append((mask.shape, annotation.shape))
            return confusion_matrix(mask, annotation, count)

        monkeypatch.setattr(evaluator_module, "make_predict", counting)
        monkeypatch.setattr(evaluator_module.metrics, "confusion_matrix", scoring)
        super().__init__(config, graphdef)


@pytest.fixture(scope="module")
def runs(network):
    """Batch size -> evaluator, metrics and the progress it reported."""
    graphdef, params = network
    results = {}
    with pytest.MonkeyPatch.context() as patch:
        for batch_size in (1, 3):
            evaluator = Counted(make_config(batch_size), graphdef, patch)
            progress = []
            results[batch_size] = evaluator, evaluator.evaluate(params, Source(), progress.append), progress
            patch.undo()
    return results


@pytest.fixture(scope="module")
def samples(network, runs):
    return runs[3][0].samples(network[1], Source(), 10)


def leaves(metrics):
    return {
        jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(metrics)[0]
    }


def test_batch_size_does_not_matter(runs):
    one, three = leaves(runs[1][1]), leaves(runs[3][1])
    assert one.keys() == three.keys()
    for name, value in one.items():
        # Rounding differs between batch sizes and may flip single pixels.
        assert value == pytest.approx(three[name], abs=2e-3), name


@pytest.mark.parametrize("batch_size", [1, 3])
def test_one_program_per_canvas_whatever_the_last_batches_hold(runs, batch_size):
    expected = {(batch_size, 32, 32, 3), (batch_size, 32, 48, 3)}
    assert set(runs[batch_size][0].traces) == expected
    assert len(runs[batch_size][0].traces) == 2


def test_every_picture_is_scored_once_at_the_annotations_resolution(runs):
    evaluator, metrics, progress = runs[3]
    assert metrics["images"] == 5
    assert progress == [1, 2, 3, 4, 5]
    assert all(mask == annotation for mask, annotation in evaluator.scored)
    assert sorted(mask for mask, _ in evaluator.scored) == sorted(SIZES * 2 * len(STAGES))


def test_metrics(runs):
    metrics = runs[3][1]
    assert metrics.keys() == {"images", "classification", "miou", "iou"}
    for part in ("miou", "iou"):
        assert metrics[part].keys() == {"predicted", "given"}
        assert all(scores.keys() == set(STAGES) for scores in metrics[part].values())
    numbers = [value for name, value in leaves(metrics).items() if name != "['images']"]
    assert all(isinstance(value, float) and 0 <= value <= 1 for value in numbers)
    for protocol, stages in metrics["iou"].items():
        for stage, scores in stages.items():
            assert list(scores) == ["background", *CLASSES]
            assert scores["cow"] is None, "absent from the ground truth"
            present = [scores[name] for name in ("background", "ant", "bee")]
            assert metrics["miou"][protocol][stage] == pytest.approx(np.mean(present))


def test_scores_are_those_of_the_samples_masks(runs, samples):
    """Counted by hand over what the report shows."""
    for stage in STAGES:
        hit, union = np.zeros(3), np.zeros(3)
        for sample in samples:
            real = sample.ground_truth != 255
            for label in range(3):
                mine, true = sample.predictions[stage] == label, sample.ground_truth == label
                hit[label] += (mine & true & real).sum()
                union[label] += ((mine | true) & real).sum()
        assert runs[3][1]["miou"]["predicted"][stage] == pytest.approx(np.mean(hit / union), abs=1e-9)


def test_samples_fit_their_pictures(samples):
    assert sorted(sample.id for sample in samples) == [f"picture_{i}" for i in range(5)]
    items = {item["id"]: item for item in Source().items}
    for sample in samples:
        item = items[sample.id]
        np.testing.assert_array_equal(sample.image, item["image"])
        np.testing.assert_array_equal(sample.ground_truth, item["mask"])
        assert sample.tags == ("ant", "bee")
        size = item["mask"].shape
        arrays = [sample.cam, sample.pseudo_label, *sample.predictions.values()]
        assert {array.shape for array in arrays} == {size}
        assert sample.predictions.keys() == set(STAGES)
        assert 0 <= sample.cam.min() <= sample.cam.max() <= 1


def test_fewer_samples_than_pictures(network, runs):
    assert [sample.id for sample in runs[3][0].samples(network[1], Source(), 1)] == ["picture_0"]
    assert runs[3][0].samples(network[1], Source(), 0) == []


def test_protocols_agree_where_the_predicted_tags_are_the_given_ones(network, runs, samples):
    predicted = {sample.id: [name in sample.predicted_tags for name in CLASSES] for sample in samples}
    tags = [predicted[f"picture_{i}"] for i in range(5)]
    assert 0 < np.sum(tags) < 15
    assert tags != [[True, True, False]] * 5
    metrics = runs[3][0].evaluate(network[1], Source(tags), lambda done: None)
    assert metrics["miou"]["given"] == metrics["miou"]["predicted"] == runs[3][1]["miou"]["predicted"]
    assert metrics["iou"]["given"] == metrics["iou"]["predicted"]
    assert metrics["classification"] == {"f1": 1.0, "map": 1.0}
    assert runs[3][1]["miou"]["given"] != runs[3][1]["miou"]["predicted"]


def test_class_that_is_not_given_is_not_found(network, runs):
    """Class 3 is given everywhere, the others are in the pictures."""
    metrics = runs[3][0].evaluate(network[1], Source([[0, 0, 1]] * 5), lambda done: None)
    for stage in STAGES:
        iou = metrics["iou"]["given"][stage]
        assert (iou["ant"], iou["bee"]) == (0, 0)
    assert metrics["miou"]["predicted"] == runs[3][1]["miou"]["predicted"], "no matter of the other protocol"


def test_picture_without_given_tags_is_all_background(network, runs):
    source = Source([[0, 0, 1], *[[0, 0, 0]] * 4])
    source.items[0]["mask"][:] = 255  # The one with a tag, which the scores need, has no pixel to score.
    background = np.sum([(item["mask"] == 0).sum() for item in source.items])
    scored = np.sum([(item["mask"] != 255).sum() for item in source.items])
    metrics = runs[3][0].evaluate(network[1], source, lambda done: None)
    for stage in STAGES:
        assert metrics["iou"]["given"][stage]["background"] == pytest.approx(background / scored)
        assert metrics["iou"]["predicted"][stage]["background"] < background / scored


def test_split_without_any_tag_is_a_users_error(network, runs):
    with pytest.raises(UserError, match="no image carries a tag"):
        runs[3][0].evaluate(network[1], Source([[0, 0, 0]] * 5), lambda done: None)


def test_split_without_annotation_is_a_users_error(network, runs):
    source = Source()
    for item in source.items:
        item["mask"][:] = 255
    with pytest.raises(UserError, match="no annotated pixel"):
        runs[3][0].evaluate(network[1], source, lambda done: None)


@pytest.mark.parametrize(
    ("size", "canvas"),
    [
        ((375, 500), (384, 512)),
        ((500, 375), (512, 384)),
        ((500, 500), (512, 512)),
        ((100, 110), (512, 512)),
        ((100, 120), (384, 512)),  # nearer to 4:3 than to 1:1 as a ratio: 1.2 > sqrt(4 / 3)
        ((116, 100), (512, 384)),  # as a difference, 1.16 would be nearer to 1
        ((115, 100), (512, 512)),
        ((20, 900), (384, 512)),
        ((1, 1), (512, 512)),
    ],
)
def test_nearest_canvas(size, canvas):
    assert nearest_canvas(size, [[384, 512], [512, 384], [512, 512]]) == canvas
