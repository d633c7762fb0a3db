"""Pseudo labels: constructed CAMs, and the threshold logic against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rml_jax.config import default_config
from rml_jax.ops.par import DILATIONS, ITERATIONS
from rml_jax.ops.pseudo_label import (
    PseudoLabelConfig,
    gather_classes,
    pseudo_labels,
    refine_with_background,
    tagged_slots,
)
from tests.references import loops as references

HEIGHT, WIDTH, CLASSES = 8, 12, 5
WHOLE = [0, 0, HEIGHT, WIDTH]
# PAR has its own tests; without it the logic can be followed by hand.
UNREFINED = PseudoLabelConfig(iterations=0, slots=4)
REFINED = PseudoLabelConfig(dilations=(1, 2), iterations=4, slots=4)

jitted = jax.jit(pseudo_labels, static_argnames="config")


def label(cams, tags, box=WHOLE, images=None, config=UNREFINED):
    cams = np.asarray(cams, np.float32)
    batch = len(cams)
    if images is None:
        images = np.full((*cams.shape[:3], 3), 127.0)
    box = np.broadcast_to(np.asarray(box), (batch, 4))
    return np.asarray(
        jitted(
            jnp.asarray(cams), jnp.asarray(images, jnp.float32), jnp.asarray(tags), jnp.asarray(box), config
        )
    )


def flat_cams(**scores):
    """One image whose class c0, c1, ... has one score everywhere."""
    cams = np.zeros((1, HEIGHT, WIDTH, CLASSES), np.float32)
    for name, score in scores.items():
        cams[..., int(name[1:])] = score
    return cams


def test_region_contrast_labels_the_object_of_an_image():
    """A CAM that is too wide for the configured scores, and one that is too narrow, both around the same square."""
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[2:6, 4:8] = True
    images = np.where(inside[..., None], 220.0, 40.0).repeat(3, axis=-1)[None].repeat(2, axis=0)
    around = np.zeros((HEIGHT, WIDTH), bool)
    around[1:7, 2:10] = True
    cams = np.zeros((2, HEIGHT, WIDTH, CLASSES), np.float32)
    cams[0, around, 1], cams[0, inside, 1] = 0.6, 0.9  # with 0.75 at its middle, the square alone is found
    cams[1, inside, 1] = 0.3  # below both configured scores
    tags = np.zeros((2, CLASSES))
    tags[:, 1] = 1
    plain = label(cams, tags, images=images)
    chosen = label(cams, tags, images=images, config=dataclasses.replace(UNREFINED, region_contrast=20.0))
    # Labels are enlarged from half the size, so that they are told in the middle of the regions.
    assert (plain[0, 2:6, 3:9] == 2).all()
    assert (plain[1] == 0).all()
    assert (chosen[0, 3:5, 4:8] == 2).all()
    assert (chosen[0, :, :3] == 0).all()
    # The score that finds the square is below its CAM by less than the distance to the high score.
    assert (chosen[1] == np.where(inside, 255, 0)).all()


def test_defaults_are_the_published_constants():
    config = PseudoLabelConfig()
    assert (config.high, config.low, config.iterations) == (0.55, 0.35, 10)
    assert config.dilations == (1, 2, 4, 8, 12, 24)


def test_par_is_configured_as_published():
    """config.py imports no operator, so that it states the defaults a second time."""
    pseudo = default_config().pseudo_label
    assert (pseudo.dilations, pseudo.iterations) == (DILATIONS, ITERATIONS)


def test_gather_takes_the_tagged_classes_first():
    cams = jnp.arange(2 * 5, dtype=jnp.float32).reshape(2, 1, 1, 5)
    tags = jnp.asarray([[0, 1, 0, 1, 1], [0, 0, 0, 0, 1]])
    classes, used = tagged_slots(tags, 4)
    maps = gather_classes(cams, classes)
    np.testing.assert_array_equal(used, [[True, True, True, False], [True, False, False, False]])
    assert classes[0, :3].tolist() == [1, 3, 4]
    assert classes[1, 0] == 4
    assert maps[0, 0, 0, :3].tolist() == [1, 3, 4]
    assert maps[1, 0, 0, 0] == 9
    for b in range(2):
        assert maps[b, 0, 0].tolist() == [float(cams[b, 0, 0, c]) for c in classes[b]]


def test_gather_keeps_the_first_of_too_many_tags():
    classes, used = tagged_slots(jnp.asarray([[0, 1, 1, 0, 1]], bool), 2)
    assert classes.tolist() == [[1, 2]]
    assert used.all()


def test_unused_slots_get_probability_0_and_the_rest_is_a_softmax():
    cams = np.random.default_rng(0).random((2, 2, 3, 3)).astype(np.float32)
    used = np.array([[True, True, False], [False, False, False]])
    result = np.asarray(
        refine_with_background(
            jnp.asarray(cams),
            jnp.asarray(used),
            jnp.zeros((2, 2, 3, 3)),
            (0.55, 0.35),
            dilations=(1,),
            iterations=0,
        )
    )
    assert result.shape == (2, 2, 3, 2, 4)
    for t, background in enumerate((0.55, 0.35)):
        powers = np.exp(np.concatenate([np.full((2, 3, 1), background), cams[0, :, :, :2]], axis=-1))
        np.testing.assert_allclose(result[0, :, :, t, :3], powers / powers.sum(-1, keepdims=True), rtol=1e-5)
        np.testing.assert_array_equal(result[0, :, :, t, 3], np.zeros((2, 3)))
        np.testing.assert_array_equal(result[1, :, :, t], np.tile([1, 0, 0, 0], (2, 3, 1)))


@pytest.mark.parametrize(
    ("score", "expected"), [(0.0, 0), (0.34, 0), (0.36, 255), (0.54, 255), (0.56, 3), (1.0, 3)]
)
def test_bands(score, expected):
    labels = label(flat_cams(c2=score), [[0, 0, 1, 0, 0]])
    assert labels.shape == (1, HEIGHT, WIDTH)
    assert np.unique(labels).tolist() == [expected]


def test_between_the_bands_of_two_classes():
    both = [[0, 1, 0, 1, 0]]
    assert np.unique(label(flat_cams(c1=0.7, c3=0.8), both)).tolist() == [4]
    assert np.unique(label(flat_cams(c1=0.7, c3=0.6), both)).tolist() == [2]
    assert np.unique(label(flat_cams(c1=0.2, c3=0.5), both)).tolist() == [255]
    assert np.unique(label(flat_cams(c1=0.2, c3=0.3), both)).tolist() == [0]


def test_outside_the_box_is_ignored():
    cams = np.concatenate([flat_cams(c2=0.9), flat_cams(c2=0.1)])
    boxes = [[1, 2, 6, 11], [0, 0, HEIGHT, 7]]
    labels = label(cams, [[0, 0, 1, 0, 0]] * 2, box=boxes)
    expected = np.full((2, HEIGHT, WIDTH), 255)
    expected[0, 1:6, 2:11] = 3
    expected[1, :, :7] = 0
    np.testing.assert_array_equal(labels, expected)


def test_untagged_classes_never_appear_however_strong():
    cams = flat_cams(c0=1.0, c2=0.6, c4=1.0)
    assert np.unique(label(cams, [[0, 0, 1, 0, 0]])).tolist() == [3]
    assert np.unique(label(cams, [[0, 1, 0, 0, 0]])).tolist() == [0]
    assert np.unique(label(cams, [[0, 0, 0, 0, 0]])).tolist() == [0]


def unrefined(cams, tags, box):
    """The reference without PAR."""
    images = np.zeros((*cams.shape[:3], 3))
    return references.pseudo_labels(cams, images, tags, box, dilations=(1,), iterations=0)


TAGS = st.lists(st.integers(0, CLASSES - 1), max_size=4, unique=True)


@settings(max_examples=15)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_equals_numpy(data, seed):
    cams = np.random.default_rng(seed).random((2, HEIGHT, WIDTH, CLASSES)).astype(np.float32)
    tags = np.zeros((2, CLASSES), bool)
    for row in tags:
        row[data.draw(TAGS)] = True
    box = [[0, 1, 7, 12], [2, 0, 8, 9]]
    labels = label(cams, tags, box=box)
    np.testing.assert_array_equal(labels, unrefined(cams, tags, box))


def test_odd_sizes_are_halved_downwards():
    cams = np.random.default_rng(0).random((1, 5, 7, 2)).astype(np.float32)
    tags, box = [[1, 1]], [[0, 0, 5, 7]]
    labels = label(cams, tags, box=box)
    np.testing.assert_array_equal(labels, unrefined(cams, tags, box))
    assert {0, 255} < set(np.unique(labels)), "a case that tells nothing"


def test_number_of_slots_does_not_matter_while_it_suffices():
    rng = np.random.default_rng(3)
    cams = rng.random((2, HEIGHT, WIDTH, CLASSES))
    images = rng.integers(0, 256, (2, HEIGHT, WIDTH, 3))
    tags = [[0, 1, 0, 0, 1], [0, 0, 0, 1, 0]]
    two, three, many = (
        label(cams, tags, images=images, config=dataclasses.replace(REFINED, slots=slots))
        for slots in (2, 3, 9)
    )
    np.testing.assert_array_equal(two, three)
    np.testing.assert_array_equal(two, many)
    assert len(np.unique(two)) > 2


def test_refinement_spreads_labels_along_the_colours():
    # The CAM knows a third of the object on the right and is unsure about the rest of it.
    images = np.zeros((1, HEIGHT, WIDTH, 3))
    images[:, :, 6:] = [250, 120, 10]
    cams = np.zeros((1, HEIGHT, WIDTH, CLASSES))
    cams[:, :, 6:, 1], cams[:, 2:6, 8:12, 1] = 0.5, 1.0
    tags = [[0, 1, 0, 0, 0]]
    unrefined, refined = (label(cams, tags, images=images, config=c) for c in (UNREFINED, REFINED))
    assert (unrefined == 2).sum() < 30, "of 48"
    np.testing.assert_array_equal(refined[0, :, 7:], np.full((HEIGHT, 5), 2))
    np.testing.assert_array_equal(refined[0, :, :5], np.zeros((HEIGHT, 5)))


def test_no_gradient_passes():
    def total(cams):
        labels = pseudo_labels(
            cams, jnp.zeros((1, 4, 4, 3)), jnp.ones((1, 1)), jnp.asarray([[0, 0, 4, 4]]), UNREFINED
        )
        return jnp.sum(labels * cams[..., 0])

    cams = jnp.full((1, 4, 4, 1), 0.9)
    # As if the labels were constants: each 1.
    np.testing.assert_array_equal(jax.jit(jax.grad(total))(cams), np.ones((1, 4, 4, 1)))
