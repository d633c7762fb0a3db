"""Operators on padded images, against the plain ones on each image alone, with rubbish all around."""

import functools

import jax
import numpy as np
import pytest

from rml_jax.ops.par import par
from rml_jax.ops.region import blank_outside, inside, mirror_inside, replicate_edges, resize_inside
from rml_jax.ops.resize import bilinear_matrix

CANVAS = (9, 12)
SIZES = np.array([(9, 12), (5, 12), (7, 3), (1, 1)], np.int32)


@pytest.fixture
def maps():
    return np.random.default_rng(0).normal(0, 100, (len(SIZES), *CANVAS, 2)).astype(np.float32)


def alone(maps, number, sizes=SIZES):
    """The image cut out, [1, h, w, C]."""
    height, width = sizes[number]
    return maps[number : number + 1, :height, :width]


def test_inside():
    expected = np.zeros((len(SIZES), *CANVAS), bool)
    for number, (height, width) in enumerate(SIZES):
        expected[number, :height, :width] = True
    np.testing.assert_array_equal(inside(SIZES, CANVAS), expected)


def test_blank_outside(maps):
    blank = np.asarray(blank_outside(maps, SIZES))
    np.testing.assert_array_equal(blank, maps * np.asarray(inside(SIZES, CANVAS))[..., None])
    assert blank_outside(maps, None) is maps


def test_replicated_edges_are_those_of_numpy(maps):
    found = np.asarray(replicate_edges(maps, SIZES))
    first = np.asarray(replicate_edges(np.moveaxis(maps, -1, 1), SIZES, axes=(2, 3)))
    for number, (height, width) in enumerate(SIZES):
        margins = ((0, 0), (0, CANVAS[0] - height), (0, CANVAS[1] - width), (0, 0))
        expected = np.pad(alone(maps, number), margins, mode="edge")[0]
        np.testing.assert_array_equal(found[number], expected)
        np.testing.assert_array_equal(np.moveaxis(first[number], 0, -1), expected)


def test_mirror(maps):
    found = np.asarray(mirror_inside(maps, SIZES))
    for number in range(len(SIZES)):
        np.testing.assert_array_equal(alone(found, number), alone(maps, number)[:, :, ::-1])
    np.testing.assert_array_equal(mirror_inside(found, SIZES), maps)


@pytest.mark.parametrize(
    ("canvas", "new_sizes"),
    [
        ((18, 24), [(18, 24), (10, 24), (14, 6), (2, 2)]),
        ((5, 6), [(4, 6), (2, 6), (4, 2), (1, 1)]),
        ((9, 12), [(9, 12), (5, 12), (7, 3), (1, 1)]),
        ((31, 7), [(31, 7), (17, 5), (23, 2), (9, 7)]),
    ],
)
def test_resize(maps, canvas, new_sizes):
    new_sizes = np.array(new_sizes, np.int32)
    found = np.asarray(jax.jit(resize_inside, static_argnums=2)(maps, SIZES, canvas, new_sizes))
    assert found.shape == (len(SIZES), *canvas, 2)
    for number, size in enumerate(new_sizes):
        rows, columns = (bilinear_matrix(*pair) for pair in zip(size, SIZES[number], strict=True))
        expected = np.einsum("ih,bhwc,jw->bijc", rows, alone(maps, number), columns)
        np.testing.assert_allclose(alone(found, number, new_sizes), expected, rtol=1e-5, atol=1e-4)
    assert not found[~np.asarray(inside(new_sizes, canvas))].any()


def test_resize_of_large_maps_is_as_exact_as_of_small_ones():
    """Positions in float32 would be wrong by 1e-4 samples at this length, which is a grey level of these stripes."""
    stripes = np.tile(np.array([0, 1e4], np.float32), 1500)[None, None, :, None]
    size, new = np.array([[1, 2999]], np.int32), np.array([[1, 3000]], np.int32)
    expected = bilinear_matrix(3000, 2999) @ stripes[0, 0, :2999]
    np.testing.assert_allclose(resize_inside(stripes, size, (1, 3000), new)[0, 0], expected, atol=0.01)


def test_par(maps):
    """PAR replicates the edges of the image, not of the canvas. Dilations reach beyond both."""
    images = np.random.default_rng(1).integers(0, 256, (len(SIZES), *CANVAS, 3)).astype(np.float32)
    refine = jax.jit(functools.partial(par, dilations=(1, 12), iterations=3))
    found = np.asarray(refine(images, maps, sizes=SIZES))
    for number in (1, 2):
        expected = refine(alone(images, number), alone(maps, number))
        np.testing.assert_allclose(alone(found, number), expected, rtol=1e-4, atol=1e-3)
