"""The evaluator on a small random network: batches, sizes, devices, protocols, sweeps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import rml_jax
from rml_jax.config import default_config
from rml_jax.evaluation.evaluator import Evaluator
from rml_jax.evaluation.parts import PartFolder
from rml_jax.evaluation.scores import Scores
from rml_jax.models import BACKBONES
from rml_jax.models import build as build_module
from rml_jax.stages.canvas import crop_labels, pad_image, place, smallest_side
from rml_jax.utils.errors import UserError

CLASSES = ("ant", "bee", "cow")
STAGES = ("cam", "affinity", "par", "par+crf")
ROOT = Path(rml_jax.__file__).parents[1]
# Height and width of the images: two on the square canvas, one on the wide one, one too small, one too large.
SIZES = [(40, 40), (30, 47), (33, 32), (5, 40), (50, 75)]


def make_config(batch_size, stages=STAGES):
    config = default_config()
    config.data.class_names = CLASSES
    config.model.variant = "mini"
    config.cam.scales, config.cam.flip = (1.0,), False
    config.pseudo_label.dilations, config.pseudo_label.iterations = (1, 2), 2
    config.loss.radius = 2
    config.eval.canvases = ((40, 40), (40, 60))
    config.eval.stages = stages
    config.eval.background = {"cam": 0.4, "affinity": 0.2, "par": 0.3}
    config.eval.batch_size = batch_size
    return config


class Source:
    """Images of noise with random masks of background, class 1 and class 2; class 3 never occurs."""

    def __init__(self, tags=None):
        rng = np.random.default_rng(0)
        self.items = []
        for number, size in enumerate(SIZES):
            item = {
                "id": f"image_{number}",
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


@pytest.fixture(scope="module")
def runs(network):
    """Batch size -> evaluator, its scores, the masks it saved, and the progress it reported."""
    graphdef, params = network
    results = {}
    for batch_size, stages in ((1, ("cam",)), (3, STAGES)):
        evaluator, progress, saved = Evaluator(make_config(batch_size, stages), graphdef), [], {}

        def save(protocol, stage, image_id, mask, saved=saved):
            saved[protocol, stage, image_id] = mask

        backgrounds = evaluator.fixed_backgrounds()
        scores = evaluator.evaluate(params, Source(), backgrounds, progress.append, save)
        results[batch_size] = evaluator, scores, saved, progress
    return results


def evaluate(evaluator, params, source):
    return evaluator.evaluate(params, source, evaluator.fixed_backgrounds(), lambda done: None)


@pytest.fixture(scope="module")
def samples(network, runs):
    return runs[3][0].samples(network[1], Source(), range(5))


def test_batch_size_does_not_matter(runs):
    _, one, masks, _ = runs[1]
    _, three, others, _ = runs[3]
    assert len(masks) == 5 * 2
    for key, mask in masks.items():
        np.testing.assert_array_equal(mask, others[key], err_msg=str(key))
    for protocol, stages in one.mean_iou().items():
        assert stages["cam"] == three.mean_iou()[protocol]["cam"]
    assert one.classification == pytest.approx(three.classification)


def test_a_handful_of_programs_whatever_the_sizes(runs):
    """Two canvases and one number of class slots for five sizes."""
    evaluator = runs[3][0]
    assert {(name, canvas) for name, canvas, _ in evaluator.programs if name != "sample maps"} == {
        (name, canvas) for name in ("network", "refine", "crf") for canvas in ((40, 40), (40, 60))
    }


def test_every_image_is_scored_once_at_the_annotations_resolution(runs):
    evaluator, scores, saved, progress = runs[3]
    assert scores.images == 5
    assert progress == [1, 2, 3, 4, 5]
    assert len(saved) == 5 * 2 * len(STAGES)
    for (_, _, image_id), mask in saved.items():
        assert mask.shape == SIZES[int(image_id[-1])]
    # The one that fits on no canvas is reduced, the one that the network can't take enlarged.
    assert sorted(evaluator.resized[:2]) == ["image_3", "image_4"]
    pixels = sum((item["mask"] != 255).sum() for item in Source().items)
    assert {int(matrix.sum()) for matrix in scores.matrices.values()} == {pixels}


def test_miou_is_that_of_an_independent_count(runs):
    """Sets of pixels in NumPy, class by class, over the masks that were saved."""
    _, scores, saved, _ = runs[3]
    annotations = {item["id"]: item["mask"] for item in Source().items}
    for protocol in ("predicted", "given"):
        for stage in STAGES:
            ious = []
            for label in range(4):
                hit = union = occurs = 0
                for image_id, annotation in annotations.items():
                    mine = (saved[protocol, stage, image_id] == label) & (annotation != 255)
                    hit += np.sum(mine & (annotation == label))
                    union += np.sum(mine | (annotation == label))
                    occurs += np.sum(annotation == label)
                if occurs:
                    ious.append(hit / union)
            assert scores.mean_iou()[protocol][stage] == np.mean(ious)
            assert scores.iou()[protocol][stage]["cow"] is None, "absent from the ground truth"


def test_classes_names_and_ranges(runs):
    scores = runs[3][1]
    for part in (scores.mean_iou(), scores.iou()):
        assert part.keys() == {"predicted", "given"}
        assert all(list(stages) == list(STAGES) for stages in part.values())
    assert list(scores.iou()["given"]["cam"]) == ["background", *CLASSES]
    assert all(0 <= value <= 1 for stages in scores.mean_iou().values() for value in stages.values())


def test_samples_fit_their_images(samples, runs):
    items = {item["id"]: item for item in Source().items}
    assert [sample.id for sample in samples] == list(items)
    for sample in samples:
        item = items[sample.id]
        np.testing.assert_array_equal(sample.image, item["image"])
        np.testing.assert_array_equal(sample.ground_truth, item["mask"])
        assert sample.tags == ("ant", "bee")
        arrays = [sample.cam, sample.pseudo_label, *sample.predictions.values()]
        assert {array.shape for array in arrays} == {item["mask"].shape}
        assert list(sample.predictions) == list(STAGES)
        for stage, mask in sample.predictions.items():
            np.testing.assert_array_equal(mask, runs[3][2]["predicted", stage, sample.id])
        assert 0 <= sample.cam.min() <= sample.cam.max() <= 1


def test_samples_come_in_the_order_asked_for(network, runs):
    assert [s.id for s in runs[3][0].samples(network[1], Source(), [4, 0])] == ["image_4", "image_0"]
    assert runs[3][0].samples(network[1], Source(), []) == []


def test_protocols_agree_where_the_predicted_tags_are_the_given_ones(network, runs, samples):
    tags = [[name in sample.predicted_tags for name in CLASSES] for sample in samples]
    assert 0 < np.sum(tags) < 15
    assert tags != [[True, True, False]] * 5
    scores = evaluate(runs[3][0], network[1], Source(tags))
    before = runs[3][1].mean_iou()
    assert scores.mean_iou()["given"] == scores.mean_iou()["predicted"] == before["predicted"]
    assert scores.classification == {"f1": 1.0, "map": 1.0}
    assert before["given"] != before["predicted"]


def test_class_that_is_not_given_is_not_found(network, runs):
    """Class 3 is given everywhere, the others are in the images."""
    scores = evaluate(runs[3][0], network[1], Source([[0, 0, 1]] * 5))
    for stage in STAGES:
        iou = scores.iou()["given"][stage]
        assert (iou["ant"], iou["bee"]) == (0, 0)
    assert scores.mean_iou()["predicted"] == runs[3][1].mean_iou()["predicted"], (
        "no matter of the other protocol"
    )


def test_image_without_given_tags_is_all_background(network, runs):
    source = Source([[0, 0, 1], *[[0, 0, 0]] * 4])
    source.items[0]["mask"][:] = 255  # The one with a tag, which the scores need, has no pixel to score.
    background = np.sum([(item["mask"] == 0).sum() for item in source.items])
    scored = np.sum([(item["mask"] != 255).sum() for item in source.items])
    iou = evaluate(runs[3][0], network[1], source).iou()
    for stage in STAGES:
        assert iou["given"][stage]["background"] == pytest.approx(background / scored)


def test_split_without_any_tag_is_a_users_error(network, runs):
    with pytest.raises(UserError, match="no image carries a tag"):
        evaluate(runs[3][0], network[1], Source([[0, 0, 0]] * 5))


def test_split_without_annotation_is_a_users_error(network, runs):
    source = Source()
    for item in source.items:
        item["mask"][:] = 255
    with pytest.raises(UserError, match="no annotated pixel"):
        evaluate(runs[3][0], network[1], source).mean_iou()


def test_sweep_gives_the_scores_of_one_evaluation_for_each_background(network, runs):
    evaluator, grid = runs[3][0], (0.4, 0.2, 0.6, 9.0)
    curves = evaluator.sweep(network[1], Source(), range(5), grid, lambda done: None)
    assert {protocol: set(of) for protocol, of in curves.items()} == {
        protocol: {"cam", "affinity", "par"} for protocol in ("predicted", "given")
    }
    for number, score in enumerate(grid):
        backgrounds = {protocol: dict.fromkeys(of, score) for protocol, of in curves.items()}
        expected = evaluator.evaluate(network[1], Source(), backgrounds, lambda done: None).mean_iou()
        for protocol, of in curves.items():
            assert {stage: scores[number] for stage, scores in of.items()} == {
                stage: expected[protocol][stage] for stage in of
            }
    # All background: the share of the background's pixels, and 0 for the two other classes in the annotations.
    labels = np.concatenate([item["mask"].ravel() for item in Source().items])
    share = np.mean(labels[labels != 255] == 0) / 3
    assert [of["cam"][3] for of in curves.values()] == pytest.approx([share] * 2)


def test_sweep_scores_the_images_that_are_asked_for(network, runs):
    source, progress = Source(), []
    source.items[2:] = [None] * 3
    curves = runs[1][0].sweep(network[1], source, [1, 0], (0.4,), progress.append)
    source.items[2:] = []
    assert curves["given"]["cam"] == [evaluate(runs[1][0], network[1], source).mean_iou()["given"]["cam"]]
    assert progress == [1, 2]


def test_a_stopped_evaluation_goes_on_with_what_is_not_scored(network, runs, tmp_path):
    evaluator, whole, _, _ = runs[3]
    asked = []

    class Recorded(Source):
        def __init__(self, broken=()):
            super().__init__()
            self.broken = broken

        def __getitem__(self, index):
            if index in self.broken:
                raise KeyboardInterrupt
            asked.append(index)
            return super().__getitem__(index)

    parts = PartFolder(tmp_path / "parts", {}, ("background", *CLASSES), seconds=0)
    parts.open()
    backgrounds = evaluator.fixed_backgrounds()
    with pytest.raises(KeyboardInterrupt):
        evaluator.evaluate(network[1], Recorded({4}), backgrounds, lambda done: None, parts=parts)
    known, progress = set(parts.load().tags), []
    assert 0 < len(known) < 5
    asked.clear()
    scores = evaluator.evaluate(network[1], Recorded(), backgrounds, progress.append, parts=parts)
    assert sorted(asked) == sorted(set(range(5)) - known)
    assert progress[-1] == 5
    assert (scores.mean_iou(), scores.iou()) == (whole.mean_iou(), whole.iou())
    assert scores.classification == whole.classification
    for key, matrix in whole.matrices.items():
        np.testing.assert_array_equal(scores.matrices[key], matrix)
    assert sum(evaluator.canvases.values()) == 5


def test_worst_and_best_images():
    scores = Scores(("background", "ant"))
    truth = np.array([[0, 0, 1, 1]], np.uint8)
    for index, mask in enumerate(([0, 0, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0])):
        scores.add("given", "cam", index, np.array([mask], np.uint8), truth)
    scores.add("given", "cam", 4, truth, np.full_like(truth, 255))
    worst, best = scores.worst_and_best("given", "cam", 2)
    assert (worst, best) == ([2, 3], [1, 0])
    # By hand: background 2 of 3, ant 1 of 2.
    assert scores.by_image["given", "cam"][0] == pytest.approx((2 / 3 + 1 / 2) / 2)


PROGRAM = """
import json, sys
import jax
from tests.evaluation import test_evaluator as t
from tests.references.networks import random_network
from flax import nnx
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
config = t.make_config(1, ("cam",))
graphdef, params = nnx.split(random_network(lambda: t.build_module.build_model(config, seed=0)))
evaluator = t.Evaluator(config, graphdef)
scores = t.evaluate(evaluator, params, t.Source())
curves = evaluator.sweep(params, t.Source(), range(5), (0.3, 0.5), lambda done: None)
matrices = {" ".join(key): matrix.tolist() for key, matrix in scores.matrices.items()}
print(json.dumps([jax.device_count(), matrices, scores.classification, curves]))
"""


def test_number_of_devices_does_not_matter(network, runs):
    """Two simulated devices share the images."""
    xla_flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    flags = {"XLA_FLAGS": xla_flags, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, str(jax.config.jax_compilation_cache_dir)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | flags, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    devices, matrices, classification, curves = json.loads(done.stdout)
    assert devices == 2
    evaluator, scores = runs[1][:2]
    assert curves == evaluator.sweep(network[1], Source(), range(5), (0.3, 0.5), lambda done: None)
    assert matrices == {" ".join(key): matrix.tolist() for key, matrix in scores.matrices.items()}
    assert classification == pytest.approx(scores.classification)


# --- Canvases ---

VOC = [[384, 512], [512, 384], [512, 512]]


@pytest.mark.parametrize(
    ("size", "placed"),
    [
        ((375, 500), ((375, 500), (384, 512))),
        ((500, 375), ((500, 375), (512, 384))),
        ((384, 400), ((384, 400), (384, 512))),
        ((385, 400), ((385, 400), (512, 512))),
        ((10, 500), ((57, 500), (384, 512))),
        ((1, 1), ((57, 57), (384, 512))),
        ((3000, 4000), ((384, 512), (384, 512))),
        ((4000, 3000), ((512, 384), (512, 384))),
        ((600, 600), ((512, 512), (512, 512))),
        ((2, 9000), ((57, 512), (384, 512))),
    ],
)
def test_place(size, placed):
    assert place(size, VOC, 57) == placed


@pytest.mark.parametrize(("variant", "scales"), [("b1", (0.5, 1.0, 1.5)), ("mini", (1.0,)), ("b1", (2.0,))])
def test_smallest_side_is_just_enough(variant, scales):
    backbone = BACKBONES[variant]()
    side = smallest_side(backbone, scales)
    shortest = [min(round(s * min(1.0, *scales)) for s in (side + d,)) for d in (-1, 0)]
    assert shortest[0] < backbone.smallest_side <= shortest[1]


def test_pad_and_crop():
    image = np.random.default_rng(0).integers(1, 256, (5, 7, 3)).astype(np.uint8)
    padded = pad_image(image, (5, 7), (8, 9))
    np.testing.assert_array_equal(padded[:5, :7], image)
    assert padded.sum() == image.sum()
    assert pad_image(image, (8, 6), (8, 9))[:, :6].all()
    mask = np.arange(72, dtype=np.uint8).reshape(8, 9)
    np.testing.assert_array_equal(crop_labels(mask, (5, 7), (5, 7)), mask[:5, :7])
    # Reduced to 2 x 3 before: every pixel comes back as 2 x 2 of the same label.
    np.testing.assert_array_equal(
        crop_labels(mask, (2, 3), (4, 6)), np.kron(mask[:2, :3], np.ones((2, 2), np.uint8))
    )
