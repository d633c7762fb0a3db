"""The heads: against NumPy on the backbone's outputs."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rml_jax
from rml_jax.models import BACKBONES, RML, MiTConfig, RMLConfig
from rml_jax.ops import multi_scale_cam
from rml_jax.ops.region import inside
from tests.references import loops as references

BACKBONE = MiTConfig(
    embed_dims=(4, 8, 12, 16),
    depths=(1, 1, 1, 2),
    num_heads=(1, 2, 3, 4),
    sr_ratios=(4, 2, 2, 1),
    strides=(2, 2, 1, 1),
)
CONFIG = RMLConfig(BACKBONE, num_classes=3, context_channels=5)


@nnx.jit
def everything(model, images):
    return model(images), model.classify(images), model.backbone(images)


@pytest.fixture(scope="module")
def model(build):
    return build(lambda: RML(CONFIG, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, 16, 24, 3)), jnp.float32)


@pytest.fixture(scope="module")
def results(model, images):
    """RMLOutputs, what `classify` gives, and the backbone's features and attention."""
    return everything(model, images)


def test_shapes(results):
    outputs = results[0]
    assert outputs.logits.shape == (2, 3)
    assert outputs.features.shape == (2, 4, 6, 16)
    assert outputs.cam_logits.shape == (2, 4, 6, 3)
    assert outputs.affinity_logits.shape == (2, 24, 24)
    assert outputs.context.shape == (2, 8, 12, 5)
    assert {array.dtype for array in outputs} == {jnp.dtype(jnp.float32)}


def test_published_network():
    network = nnx.eval_shape(lambda: RML(RMLConfig(BACKBONES["b1"](), 20), rngs=nnx.Rngs(0)))
    assert network.classifier.kernel.shape == (512, 20)
    assert network.classifier.bias is None
    assert network.affinity.kernel.shape == (16, 1)
    assert network.affinity.bias.shape == (1,)
    assert network.fusion.kernel.shape == (64 + 128 + 320 + 512, 15)


def test_logits_are_the_classifier_on_the_greatest_features(model, results):
    outputs = results[0]
    weight = np.asarray(model.classifier.kernel[...])
    features = np.asarray(results[2][0][-1])
    np.testing.assert_array_equal(outputs.features, features)
    np.testing.assert_allclose(outputs.cam_logits, features @ weight, atol=1e-5)
    np.testing.assert_allclose(outputs.logits, features.reshape(2, -1, 16).max(axis=1) @ weight, atol=1e-5)


def test_average_pooling_gives_the_mean_of_the_maps(build, images, results):
    config = dataclasses.replace(CONFIG, pooling="average")
    outputs, (logits, _), _ = everything(build(lambda: RML(config, rngs=nnx.Rngs(0))), images)
    # The parameters are the same.
    np.testing.assert_allclose(outputs.cam_logits, results[0].cam_logits, atol=1e-6)
    np.testing.assert_allclose(outputs.logits, np.asarray(outputs.cam_logits).mean(axis=(1, 2)), atol=1e-5)
    np.testing.assert_allclose(logits, outputs.logits, atol=1e-6)
    assert np.abs(outputs.logits - results[0].logits).max() > 0.1


@pytest.fixture(scope="module")
def centred(build):
    return build(lambda: RML(dataclasses.replace(CONFIG, center_radius=1), rngs=nnx.Rngs(0)))


def test_centred_features_are_scored_without_their_mean_around_each_cell(centred, model, images, results):
    outputs, (logits, cam_logits), _ = everything(centred, images)
    features = np.asarray(results[2][0][-1])  # The parameters are the same.
    weight = np.asarray(model.classifier.kernel[...])
    np.testing.assert_allclose(outputs.features, features, atol=1e-5)
    deviations = features - references.local_mean(features, 1, np.ones(features.shape[:3], bool))
    np.testing.assert_allclose(outputs.cam_logits, deviations @ weight, atol=1e-5)
    expected = deviations.reshape(2, -1, 16).max(axis=1) @ weight
    np.testing.assert_allclose(outputs.logits, expected, atol=1e-5)
    np.testing.assert_allclose(logits, outputs.logits, atol=1e-6)
    np.testing.assert_allclose(cam_logits, outputs.cam_logits, atol=1e-6)


@pytest.mark.parametrize("radius", [0, 1])
def test_an_even_image_is_evidence_of_no_class_if_features_are_centred(build, radius):
    """Every cell of a constant image is the same, so only what all cells share could tell its class."""
    backbone = dataclasses.replace(BACKBONE, padding="edge")
    config = dataclasses.replace(CONFIG, backbone=backbone, center_radius=radius)
    outputs = build(lambda: RML(config, rngs=nnx.Rngs(0)))(jnp.full((1, 16, 24, 3), 0.7))
    evidence = max(np.abs(outputs.cam_logits).max(), np.abs(outputs.logits).max())
    assert evidence == 0 if radius else evidence > 1e-2


def test_an_image_without_any_cell_takes_all(centred, images):
    cells = np.zeros((2, 4, 6), bool)
    cells[0] = True
    for given, alone in zip(centred.classify(images, cells), centred.classify(images), strict=True):
        np.testing.assert_array_equal(given[0], alone[0])
    np.testing.assert_allclose(centred.classify(images, cells)[0], centred.classify(images)[0], atol=1e-6)


def test_average_of_centred_features_is_refused():
    with pytest.raises(ValueError, match="average pooling of centred features is about 0"):
        RMLConfig(BACKBONE, num_classes=3, pooling="average", center_radius=1)


def test_classify_equals_the_whole_call(results):
    outputs, (logits, cam_logits), _ = results
    np.testing.assert_allclose(logits, outputs.logits, atol=1e-6)
    np.testing.assert_allclose(cam_logits, outputs.cam_logits, atol=1e-6)


def test_affinity_mixes_the_symmetrised_maps(model, results):
    attention = np.asarray(results[2][1])
    assert attention.shape == (2, 8, 24, 24)
    weight, bias = np.asarray(model.affinity.kernel[...]), np.asarray(model.affinity.bias[...])
    expected = np.zeros((2, 24, 24))
    for b in range(2):
        for head in range(8):
            expected[b] += weight[head, 0] * (attention[b, head] + attention[b, head].T)
    expected += bias[0]
    np.testing.assert_allclose(results[0].affinity_logits, expected, atol=1e-4)
    np.testing.assert_array_equal(
        results[0].affinity_logits, np.asarray(results[0].affinity_logits).swapaxes(1, 2)
    )
    assert np.abs(attention - attention.swapaxes(2, 3)).max() > 0.1, "the maps themselves are not symmetric"


@pytest.fixture(scope="module")
def reduced(model, images):
    """RMLOutputs without symmetry and fusion, from the network above but for the fusion's kernel, which is given."""
    config = dataclasses.replace(CONFIG, symmetric_affinity=False, fused_stages=1)
    graph, _ = nnx.split(nnx.eval_shape(lambda: RML(config, rngs=nnx.Rngs(0))))
    params, kernel = nnx.state(model), np.random.default_rng(2).normal(size=(16, 5)).astype(np.float32)
    params["fusion"]["kernel"] = nnx.Param(jnp.asarray(kernel))
    return nnx.jit(lambda model, images: model(images))(nnx.merge(graph, params), images), kernel


def test_affinity_without_symmetry(model, results, reduced):
    attention = np.asarray(results[2][1])
    weight, bias = np.asarray(model.affinity.kernel[...])[:, 0], np.asarray(model.affinity.bias[...])
    expected = np.einsum("bhij,h->bij", attention, weight) + bias
    np.testing.assert_allclose(reduced[0].affinity_logits, expected, atol=1e-4)


def test_fusion_is_a_1x1_convolution_of_all_stages_on_the_first_grid(model, results):
    weight, bias = np.asarray(model.fusion.kernel[...]), np.asarray(model.fusion.bias[...])
    stages = [references.resize_bilinear(np.asarray(stage), (8, 12)) for stage in results[2][0]]
    expected = np.concatenate(stages, axis=-1) @ weight + bias
    np.testing.assert_allclose(results[0].context, expected, atol=1e-4)


def test_without_the_fusion_the_context_is_made_of_the_last_stage(model, results, reduced):
    outputs, kernel = reduced
    last = references.resize_bilinear(np.asarray(results[2][0][-1]), (8, 12))
    np.testing.assert_allclose(outputs.context, last @ kernel + np.asarray(model.fusion.bias[...]), atol=1e-4)


def test_only_the_backbone_computes_in_bfloat16(images):
    graph, state = nnx.split(nnx.eval_shape(lambda: RML(CONFIG, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))))
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}
    outputs, (features, _) = jax.eval_shape(
        lambda state: (nnx.merge(graph, state)(images), nnx.merge(graph, state).backbone(images)), state
    )
    assert {array.dtype for array in outputs} == {jnp.dtype(jnp.float32)}
    assert features[-1].dtype == jnp.bfloat16


def test_images_of_a_batch_do_not_mix(model, images, results):
    swapped = everything(model, images[::-1])[0]
    for ours, theirs in zip(swapped, results[0], strict=True):
        np.testing.assert_allclose(ours[::-1], theirs, atol=1e-5)


@pytest.mark.parametrize(("pooling", "radius"), [("max", 0), ("max", 2), ("average", 0)])
def test_padding_changes_no_image(build, pooling, radius):
    """Two sizes on one canvas give what each gives alone, whatever lies beyond them: not one bit depends on that."""
    config = dataclasses.replace(CONFIG, pooling=pooling, center_radius=radius)
    model = build(lambda: RML(config, rngs=nnx.Rngs(0)))
    run = nnx.jit(lambda model, images, sizes=None: model(images, sizes=sizes))
    sizes, rng = np.array([[16, 24], [13, 29]], np.int32), np.random.default_rng(3)
    images = [rng.normal(size=(1, *size, 3)).astype(np.float32) for size in sizes]
    results = []
    for beyond in (0.0, 1e3):
        canvas = beyond * rng.normal(size=(2, 20, 33, 3)).astype(np.float32)
        for image, place in zip(images, canvas, strict=True):
            place[: image.shape[1], : image.shape[2]] = image[0]
        results.append(run(model, canvas, sizes))
    for number, image in enumerate(images):
        alone = run(model, image)
        height, width = alone.cam_logits.shape[1:3]
        corner = np.flatnonzero(inside(np.array([[height, width]]), results[0].cam_logits.shape[1:3]))
        pairs = corner[:, None], corner[None, :]
        padded = [
            (r.logits[number], r.cam_logits[number, :height, :width], r.affinity_logits[number][pairs])
            for r in results
        ]
        jax.tree.map(np.testing.assert_array_equal, *padded)
        expected = (alone.logits[0], alone.cam_logits[0], alone.affinity_logits[0])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5), padded[0], expected)


def symmetric(model):
    """The model with every spatial kernel made equal to its mirror image."""

    def symmetrise(leaf):
        # [height, width, ...]: kernels of convolutions, depthwise ones included.
        return (leaf + leaf[:, ::-1]) / 2 if leaf.ndim > 2 else leaf

    graph, state = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(symmetrise, state))


def test_a_mirror_symmetric_network_mirrors_its_cams_with_the_image(build):
    # Grids of 33, 9, 5, 3, 3 cells: every stride and reduction samples them symmetrically.
    backbone = dataclasses.replace(BACKBONE, strides=(4, 2, 2, 1), sr_ratios=(3, 1, 1, 1))
    model = build(lambda: RML(dataclasses.replace(CONFIG, backbone=backbone), rngs=nnx.Rngs(0)))
    images = jnp.asarray(np.random.default_rng(2).normal(size=(2, 33, 33, 3)), jnp.float32)

    @nnx.jit
    def difference(model):
        cams, mirrored = (
            multi_scale_cam(model.classify, x, scales=(1.0,), flip=False, stride=backbone.stride)
            for x in (images, images[:, :, ::-1])
        )
        return jnp.abs(mirrored - cams[:, :, ::-1]).max()

    assert difference(symmetric(model)) < 1e-4
    assert difference(model) > 0.1, "any network would do"


def test_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="unknown pooling 'sum': expected one of max, average"):
        RMLConfig(BACKBONE, 3, pooling="sum")


def test_models_load_nothing_but_jax_flax_and_numpy():
    program = """
import sys
import jax, jax.export, numpy
from flax import nnx
before = {name.split(".")[0] for name in sys.modules}
import rml_jax.models.build, rml_jax.models.weights
after = {name.split(".")[0] for name in sys.modules}
ours = {".".join(name.split(".")[:2]) for name in sys.modules if name.startswith("rml_jax.")}
print(*sorted(ours), *sorted(after - before - sys.stdlib_module_names))
"""
    root = Path(rml_jax.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert {"rml_jax", "rml_jax.models"} <= loaded
    assert loaded <= {"rml_jax", "rml_jax.models", "rml_jax.ops", "rml_jax.utils", "rml_jax.labels"}
