"""Distillation: the records, the loss by hand, and that mirrored views keep the teacher's features in place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from experiments.distill import probe, records, student, teacher


@pytest.fixture(scope="module")
def record_file(tmp_path_factory):
    """Twelve views, whose teacher's features are the mean colours of the cells."""
    writer_module = pytest.importorskip("array_record.python.array_record_module")
    path = tmp_path_factory.mktemp("records") / "views.array_record"
    writer = writer_module.ArrayRecordWriter(str(path), "group_size:1")
    rng = np.random.default_rng(0)
    for _ in range(12):
        # Columns of one colour each, so that JPEG keeps the means.
        colours = rng.integers(0, 256, 2)
        image = np.repeat(colours, 16)[None, :, None].repeat(32, 0).repeat(3, 2).astype(np.uint8)
        features = np.tile(colours[None, :, None], (2, 1, 112)).astype(np.float32)
        writer.write(records.encode(records.encode_image(image), rng.normal(size=1000), features))
    writer.close()
    return path


def test_records_keep_what_was_written():
    rng = np.random.default_rng(1)
    image = np.full((32, 32, 3), 77, np.uint8)
    logits, features = rng.normal(size=1000), rng.normal(size=(2, 2, 5))
    found = records.decode(records.encode(records.encode_image(image), logits, features))
    assert np.abs(found["image"].astype(int) - 77).max() <= 1
    np.testing.assert_allclose(found["logits"], logits, atol=2e-3)
    np.testing.assert_allclose(found["features"], features, atol=2e-3)


def test_features_are_mirrored_with_their_image(record_file):
    batches = student.make_batches([record_file], 4)
    mirrored = 0
    for _ in range(6):
        batch = next(batches)
        assert batch["image"].shape == (4, 32, 32, 3)
        for image, features in zip(batch["image"], batch["features"], strict=True):
            brighter = image[:, :16].mean() > image[:, 16:].mean()
            assert (features[0, 0, 0] > features[0, 1, 0]) == brighter
            mirrored += brighter
    assert 0 < mirrored < 24


def test_loss_by_hand():
    batch = {"logits": jnp.log(jnp.array([[0.5, 0.5]])), "features": jnp.zeros((1, 1, 1, 2))}
    logits, features = jnp.log(jnp.array([[0.25, 0.75]])), jnp.array([[[[1.0, 3.0]]]])
    total, terms = student.distillation_loss(logits, features, batch)
    divergence = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    np.testing.assert_allclose(terms["scores"], divergence, rtol=1e-5)
    np.testing.assert_allclose(terms["features"], 5.0)
    np.testing.assert_allclose(total, divergence + 5.0, rtol=1e-5)
    assert student.distillation_loss(batch["logits"], batch["features"], batch)[0] < 1e-6


def test_student_has_the_teachers_shapes():
    shapes = nnx.eval_shape(lambda: student.Student("b0", nnx.Rngs(0)))
    logits, features = jax.eval_shape(
        lambda params: nnx.merge(nnx.graphdef(shapes), params)(jnp.zeros((2, 64, 64, 3))), nnx.state(shapes)
    )
    assert logits.shape == (2, 1000)
    assert features.shape == (2, 4, 4, 112)


def test_views_are_the_central_square_first(tmp_path):
    photo = np.zeros((40, 80, 3), np.uint8)
    photo[:, 20:60] = 255
    Image.fromarray(photo).save(tmp_path / "a.png")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    paths = teacher.find_photos([tmp_path])
    views = [records.decode_image(data) for data in teacher.views_of(paths, 32, 3)]
    assert len(views) == 3
    assert views[0].min() > 240
    assert all(view.shape == (32, 32, 3) for view in views)


def test_only_listed_photos_are_read(tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    (tmp_path / "names.txt").write_text("b\n")
    assert [path.name for path in teacher.find_photos([tmp_path], tmp_path / "names.txt")] == ["b.png"]


def test_probe_tells_separable_classes_and_not_noise():
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, 300)
    separable = rng.normal(size=(300, 8)) + 4 * np.eye(8)[classes]
    noise = rng.normal(size=(300, 8))
    for features, low, high in ((separable, 0.9, 1.0), (noise, 0.15, 0.5)):
        found = probe.probe((features[:200], classes[:200]), (features[200:], classes[200:]))
        assert low <= found["accuracy"] <= high
    assert found["train"] == 200
    assert found["val"] == 100
