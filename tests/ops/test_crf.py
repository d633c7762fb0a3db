"""The dense CRF: against the exact sum over all pixels, a lattice written as loops, and pydensecrf."""

import functools
import itertools
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml_jax.ops import crf
from rml_jax.ops.crf import SETTINGS, CRFSettings, dense_crf, dense_crf_batch

SMALL = CRFSettings(3, 3, 8, 20, 4, iterations=5)

jitted_batch = jax.jit(dense_crf_batch, static_argnames=("slots", "settings"))


@pytest.fixture
def by_pydensecrf():
    """Returns the reference's function; its extension is not installed with Python 3.13 (pyproject.toml)."""
    if sys.version_info >= (3, 13):
        pytest.importorskip("pydensecrf")
    from tests.references.pydensecrf import by_pydensecrf

    return by_pydensecrf


def scene(height, width, classes=3, seed=0):
    """A smooth image with noise, and probabilities that follow it loosely."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / (5 + k) + k) * np.cos(y / (4 + k)) for k in range(max(classes, 3))], axis=-1)
    image = np.clip(128 + 80 * waves[..., :3] + rng.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)
    logits = 1.5 * waves[..., :classes] + rng.normal(0, 0.7, (height, width, classes))
    return image, np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def kernels(image, settings):
    """Features [N, 2] and [N, 5] of both kernels in float32, and their weights."""
    height, width = image.shape[:2]
    y, x = (a.reshape(-1).astype(np.float32) for a in np.mgrid[:height, :width])
    colours = image.reshape(-1, 3).astype(np.float32) / np.float32(settings.bilateral_srgb)
    near = np.stack([x, y], axis=1)
    spatial = near / np.float32(settings.spatial_sxy)
    bilateral = np.concatenate([near / np.float32(settings.bilateral_sxy), colours], axis=1)
    return [(spatial, settings.spatial_weight), (bilateral, settings.bilateral_weight)]


def mean_field(probs, settings, filters):
    """Mean field in float64; filters: pairs of a function [N, C] -> [N, C] and a weight."""
    shape = probs.shape
    unary = -np.log(np.clip(probs.reshape(-1, shape[-1]), 1e-5, 1))

    def normalise(logits):
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    ones = np.ones((len(unary), 1))
    norms = [1 / np.sqrt(apply(ones)) for apply, _ in filters]
    q = normalise(-unary)
    for _ in range(settings.iterations):
        terms = [w * n * apply(n * q) for (apply, w), n in zip(filters, norms, strict=True)]
        q = normalise(sum(terms) - unary)
    return q.reshape(shape)


def exact(image, probs, settings):
    """With the Gaussian kernels themselves, all pairs of pixels."""
    filters = []
    for features, weight in kernels(image, settings):
        features = features.astype(np.float64)
        squares = np.square(features[:, None] - features[None]).sum(axis=-1)
        filters.append((functools.partial(np.matmul, np.exp(-squares / 2)), weight))
    return mean_field(probs, settings, filters)


def lattice_filter(features):
    """The permutohedral lattice of Adams et al. (2010), one pixel after the other, vertices in a dict."""
    d = features.shape[1]
    rows, corners = {}, []
    for feature in features:
        scaled = [f * np.float32(np.float32(math.sqrt(2 / 3) * (d + 1)) / math.sqrt((i + 1) * (i + 2)))
                  for i, f in enumerate(feature)]  # fmt: skip
        elevated, total = [np.float32(0)] * (d + 1), np.float32(0)
        for i in range(d, 0, -1):
            elevated[i] = total - np.float32(i) * scaled[i - 1]
            total = total + scaled[i - 1]
        elevated[0] = total
        zero = [int(np.round(e * np.float32(1 / (d + 1)))) * (d + 1) for e in elevated]
        rest = [e - np.float32(z) for e, z in zip(elevated, zero, strict=True)]
        # Greatest remainder first; of equal ones, the earlier coordinate.
        order = sorted(range(d + 1), key=lambda i: (-rest[i], i))
        surplus = sum(zero) // (d + 1)
        order = order[-surplus % (d + 1) :] + order[: -surplus % (d + 1)]
        for i in order[: max(surplus, 0)]:
            zero[i] -= d + 1
        for i in order[surplus:] if surplus < 0 else ():
            zero[i] += d + 1
        assert sum(zero) == 0
        rest = [float(e) - z for e, z in zip(elevated, zero, strict=True)]
        steps = [rest[i] / (d + 1) for i in order]
        weights = [1 - steps[0] + steps[-1], *reversed([a - b for a, b in itertools.pairwise(steps)])]
        corner = []
        for remainder, weight in enumerate(weights):
            raised = set(order[: d + 1 - remainder])
            key = tuple(z + remainder - (0 if i in raised else d + 1) for i, z in enumerate(zero))
            corner.append((rows.setdefault(key, len(rows)), weight))
        corners.append(corner)

    def apply(values):
        vertices = np.zeros((len(rows), values.shape[1]))
        for corner, value in zip(corners, values, strict=True):
            for row, weight in corner:
                vertices[row] += weight * value
        for axis in range(d + 1):
            old, vertices = vertices, vertices.copy()
            for key, row in rows.items():
                for sign in (1, -1):
                    other = tuple(k + sign * (d if i == axis else -1) for i, k in enumerate(key))
                    if other in rows:
                        vertices[row] += 0.5 * old[rows[other]]
        return np.array([sum(w * vertices[row] for row, w in corner) for corner in corners])

    apply.number_of_vertices = len(rows)
    return apply


@pytest.mark.parametrize("settings", [SMALL, SETTINGS["seam"]])
def test_equals_a_lattice_of_loops(settings):
    image, probs = scene(13, 11)
    filters = [(lattice_filter(features), weight) for features, weight in kernels(image, settings)]
    expected = mean_field(probs, settings, filters)
    np.testing.assert_allclose(dense_crf(image, probs, settings), expected, atol=1e-5)


# Each name is a program to compile.
NAMES = ["afa", "seam", *(pytest.param(name, marks=pytest.mark.slow) for name in ("toco", "excel"))]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(28, 36), (27, 35)])
def test_equals_pydensecrf(name, size, by_pydensecrf):
    image, probs = scene(*size)
    # Only where H W is no multiple of 4, pydensecrf's padding adds the vertices around a black first pixel.
    atol = 1e-5 if size[0] * size[1] % 4 == 0 else 1e-3
    expected = by_pydensecrf(image, probs, SETTINGS[name])
    np.testing.assert_allclose(dense_crf(image, probs, name), expected, atol=atol)


def test_comes_near_the_exact_kernels():
    # The lattice's kernel is a sum of hat functions, cut where no vertices exist: some per cent off the Gaussian.
    # That bounds no single pixel near a border of classes: compare the mean, the decisions, and with no CRF at all.
    image, probs = scene(24, 28)
    expected = exact(image, probs, SMALL)
    result = dense_crf(image, probs, SMALL)
    assert np.abs(result - expected).mean() < 0.03
    assert np.abs(result - expected).mean() < 0.1 * np.abs(probs - expected).mean()
    assert (result.argmax(-1) == expected.argmax(-1)).mean() > 0.97


def test_marginals_sum_to_one_over_present_classes():
    image, probs = scene(20, 15, classes=4)
    probs[..., 2] = 1e-7
    result = dense_crf(image, probs, SMALL)
    np.testing.assert_allclose(result.sum(axis=-1), 1, atol=1e-5)
    assert result.dtype == np.float32
    assert not result[..., 2].any()
    assert np.abs(result - probs).max() > 0.1


def test_order_of_classes_only_permutes():
    image, probs = scene(20, 15)
    order = [2, 0, 1]
    permuted = dense_crf(image, probs[..., order], SMALL)
    np.testing.assert_allclose(permuted, dense_crf(image, probs, SMALL)[..., order], atol=2e-6)


def test_padding_and_slots_change_nothing():
    image, probs = scene(20, 15)
    expected = dense_crf(image, probs, SMALL)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (2, 70, 61, 3), np.uint8)
    canvas = rng.random((2, 70, 61, 5))
    images[0, :20, :15], canvas[0, :20, :15] = image, 0
    canvas[0, :20, :15, [0, 2, 4]] = np.moveaxis(probs, -1, 0)
    result, present = jitted_batch(images, canvas, np.array([[20, 15], [70, 61]]), slots=4, settings=SMALL)
    np.testing.assert_allclose(result[0, :20, :15][..., [0, 2, 4]], expected, atol=2e-6)
    assert not result[0, 20:].any()
    assert not result[0, :, 15:].any()
    assert present.tolist() == [3, 5]


def test_capacity_changes_nothing(monkeypatch):
    image, probs = scene(20, 15)
    expected = dense_crf(image, probs, SMALL)
    _, (bilateral, _) = kernels(image, SMALL)
    vertices = lattice_filter(bilateral).number_of_vertices
    monkeypatch.setattr(crf, "_LEAST_CAPACITY", 1)
    # Below the image's number of vertices, just enough, and more; the last holds every image of this size.
    shares = [share * vertices / image[..., 0].size for share in (0.5, 1.0, 1.5)]
    monkeypatch.setattr(crf, "_CAPACITIES_PER_PIXEL", tuple(share + 1e-3 for share in shares))
    several = jax.jit(functools.partial(crf.dense_crf_padded, settings=SMALL))
    np.testing.assert_allclose(several(image, probs, 20, 15), expected, atol=2e-6)


@pytest.mark.parametrize("parts", [1, 7])
def test_table_in_parts_finds_the_same(monkeypatch, parts):
    grid = crf._Grid((5, 4), 60)
    monkeypatch.setattr(crf, "_TABLE_CELLS", -(-grid.cells // parts))
    keys = np.array([7, 3, 59, 7, grid.cells], np.int32)
    found = crf._find(grid, jnp.asarray(keys), jnp.arange(grid.cells + 1, dtype=jnp.int32))
    expected = np.full(grid.cells + 1, keys.size)
    expected[[7, 3, 59]] = 0, 1, 2
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1)])
def test_thin_images(size, by_pydensecrf):
    image, probs = scene(*size)
    expected = by_pydensecrf(image, probs, SMALL)
    np.testing.assert_allclose(dense_crf(image, probs, SMALL), expected, atol=1e-3)


@pytest.mark.parametrize("kind", ["noise", "constant"])
def test_images_with_the_most_and_the_fewest_vertices(kind, by_pydensecrf):
    _, probs = scene(64, 64)
    image = np.full((64, 64, 3), 200, np.uint8)
    if kind == "noise":
        image = np.random.default_rng(0).integers(0, 256, image.shape, np.uint8)
    expected = by_pydensecrf(image, probs, SETTINGS["afa"])
    # Ten iterations amplify the rounding of float32 sums in either: up to 5e-5 was seen.
    np.testing.assert_allclose(dense_crf(image, probs), expected, atol=2e-4)


def test_one_class_is_certain():
    image, probs = scene(6, 5, classes=1)
    np.testing.assert_array_equal(dense_crf(image, probs), np.ones((6, 5, 1)))


def test_named_settings_fit_at_any_size_met():
    for name, (height, width) in itertools.product(SETTINGS, [(512, 512), (3000, 4000)]):
        image = jax.ShapeDtypeStruct((height, width, 3), jnp.uint8)
        probs = jax.ShapeDtypeStruct((height, width, 2), jnp.float32)
        jax.eval_shape(functools.partial(crf.dense_crf_padded, settings=name), image, probs, height, width)


def test_lowers_for_accelerators():
    arguments = jnp.zeros((1, 16, 16, 3), jnp.uint8), jnp.zeros((1, 16, 16, 3)), jnp.ones((1, 2), jnp.int32)
    batch = jax.jit(functools.partial(dense_crf_batch, slots=2))
    exported = jax.export.export(batch, platforms=["cpu", "cuda", "tpu"])(*arguments)
    assert "custom_call" not in exported.mlir_module()


@pytest.mark.parametrize(
    ("image", "probs", "settings", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), np.ones((4, 4, 2)), "afa", "uint8"),
        (np.zeros((4, 5, 3), np.uint8), np.ones((4, 4, 2)), "afa", "expected \\[4, 5, C\\]"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 2)), "afa", "no class"),
        (np.zeros((4, 4, 3), np.uint8), np.ones((4, 4, 2)), "voc", "afa, toco, excel, seam"),
        (np.zeros((4, 4, 3), np.uint8), np.ones((4, 4, 2)), CRFSettings(3, 3, 0.01, 0.5, 4), "lattice cells"),
    ],
)
def test_bad_input_is_refused(image, probs, settings, message):
    with pytest.raises(ValueError, match=message):
        dense_crf(image, probs, settings)
