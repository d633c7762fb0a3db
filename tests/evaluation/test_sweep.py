"""The draw of the images that background scores are chosen on, and the program that tries many scores."""

import jax
import numpy as np
import pytest

from rml_jax.evaluation.sweep import draw_images
from rml_jax.ops.pseudo_label import PseudoLabelConfig
from rml_jax.stages.config import StagesConfig
from rml_jax.stages.refine import make_refine, make_sweep


class Tagged:
    """A source that reports tags; its images must not be read."""

    def __init__(self, tags):
        self.tags = tags

    def __len__(self):
        return len(self.tags)

    def item_tags(self):
        return [(f"image_{number}", tags) for number, tags in enumerate(self.tags)]


# Sorted by class, as file names often are: 60 of class 0, 30 of class 1, 6 of class 2, 4 without tags.
SORTED = Tagged([(0,)] * 60 + [(1,)] * 30 + [(2,)] * 6 + [()] * 4)


def drawn_per_class(source, indices):
    tags = [source.tags[index] or (None,) for index in indices]
    return {tag: sum(tag in of for of in tags) for tag in (0, 1, 2, None)}


def test_draw_is_even_over_the_classes_as_far_as_they_go():
    indices = draw_images(SORTED, 12, seed=0)
    assert indices == sorted(set(indices))
    assert drawn_per_class(SORTED, indices) == {0: 3, 1: 3, 2: 3, None: 3}
    assert drawn_per_class(SORTED, draw_images(SORTED, 40, seed=0)) == {0: 15, 1: 15, 2: 6, None: 4}


def test_draw_counts_every_tag_of_an_image():
    source = Tagged([(0, 1)] * 5 + [(2,)] * 5)
    counts = drawn_per_class(source, draw_images(source, 6, seed=1))
    assert counts == {0: 3, 1: 3, 2: 3, None: 0}


def test_draw_depends_on_the_seed_alone():
    draws = [draw_images(SORTED, 12, seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_tags_that_can_not_be_read_count_as_none():
    source = Tagged([(0,)] * 8 + [None] * 8)
    assert drawn_per_class(source, draw_images(source, 6, seed=0)) == {0: 3, 1: 0, 2: 0, None: 3}


def test_all_images_are_drawn_if_there_are_no_more():
    assert draw_images(SORTED, 100, seed=0) == draw_images(SORTED, 1000, seed=0) == list(range(100))


def test_draw_from_a_source_without_tags_is_not_its_beginning():
    indices = draw_images([None] * 1000, 50, seed=0)
    assert len(set(indices)) == 50
    assert max(indices) > 500


@pytest.mark.parametrize("at_once", [2**25, 2 * 2 * 12 * 16 * 3, 1])
def test_program_gives_the_masks_of_one_score_at_a_time(at_once):
    """Five scores at once, two at once (with a remainder), and one by one."""
    rng, grid = np.random.default_rng(0), np.float32([0.1, 0.3, 0.5, 0.7, 0.9])
    config = StagesConfig(
        stages=("cam", "par"),
        scales=(1.0,),
        flip=False,
        stride=4,
        radius=1,
        pseudo_label=PseudoLabelConfig(dilations=(1, 2), iterations=2),
        crf="afa",
    )
    images = rng.integers(0, 256, (2, 12, 16, 3)).astype(np.uint8)
    sizes, affinity = np.int32([[12, 16], [9, 11]]), np.zeros((2, 12, 12), np.float32)
    cams, used = rng.random((2, 12, 16, 2)).astype(np.float32), np.array([[True, True], [True, False]])
    truth = rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), (2, 12, 16))
    inside = (np.arange(12)[:, None] < sizes[:, :1, None]) & (np.arange(16) < sizes[:, 1:, None])
    truth[~inside] = 255
    found = jax.jit(make_sweep(config, 3, at_once))(cams, used, affinity, images, sizes, truth, grid)

    refine, slots = jax.jit(make_refine(config)), np.tile(np.int32([[0, 1]]), (2, 1))
    for number, score in enumerate(grid):
        backgrounds = dict.fromkeys(config.bases, score)
        one = refine({"cams": cams, "affinity": affinity}, images, sizes, slots, used, backgrounds)["masks"]
        for base, masks in one.items():
            np.testing.assert_array_equal(
                np.asarray(found["slots"][base])[:, number][inside], np.asarray(masks)[inside]
            )
            expected = [
                [[np.sum((t == i) & (m == j)) for j in range(3)] for i in range(4)]
                for t, m in zip(truth, np.asarray(masks), strict=True)
            ]
            np.testing.assert_array_equal(found["counts"][base][:, number], expected)
