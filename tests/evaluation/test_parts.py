"""Parts of an evaluation: exact sums in any order, in files that are whole or not there."""

import itertools

import numpy as np
import pytest

from rml_jax.evaluation.parts import Part, PartFolder
from rml_jax.utils.errors import UserError

NAMES = ("background", "cat", "dog")
KEYS = tuple(itertools.product(("predicted", "given"), ("cam", "par")))


def add(part, index):
    """Adds an image whose masks and annotation are drawn from its index; one image is all ignored."""
    rng = np.random.default_rng(index)
    annotation = rng.choice(np.uint8([0, 1, 2, 255]), (5, 7)) if index else np.full((5, 7), 255, np.uint8)
    item = {"id": f"image_{index}", "tags": rng.integers(0, 2, 2).astype(np.float32)}
    prediction = {
        "probabilities": rng.random(2, np.float32),
        "canvas": (32, 40 + 8 * (index % 2)),
        "resized": index == 3,
    }
    part.add(index, item, prediction)
    for score in part.scores:
        for protocol, stage in KEYS:
            score.add(protocol, stage, index, rng.integers(0, 3, (5, 7)).astype(np.uint8), annotation)
    part.programs.add(("network", prediction["canvas"], index % 2))


def whole(indices, count=2):
    part = Part(NAMES, count)
    for index in indices:
        add(part, index)
    return part


def assert_equal(found, expected):
    for one, other in zip(found.scores, expected.scores, strict=True):
        assert one.matrices.keys() == other.matrices.keys()
        for key in KEYS:
            np.testing.assert_array_equal(one.matrices[key], other.matrices[key])
            assert one.by_image[key].keys() == other.by_image[key].keys()
            for index, iou in other.by_image[key].items():
                np.testing.assert_equal(one.by_image[key][index], iou)
        assert one.mean_iou() == other.mean_iou()
    for one, other in zip(found.classified(), expected.classified(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (found.canvases, found.programs) == (expected.canvases, expected.programs)
    assert sorted(found.resized) == sorted(expected.resized)


def test_parts_of_any_sizes_and_order_give_the_whole(tmp_path):
    folder = PartFolder(tmp_path / "parts", {"a": 1}, NAMES, count=2)
    folder.open()
    for indices in ((5, 2), (0,), (4, 1, 3)):
        rest = folder.save(whole(indices))
        assert not rest.tags
    assert_equal(folder.load(), whole(range(6)))


def test_parts_of_the_same_settings_are_kept_and_others_removed(tmp_path):
    def known(settings):
        folder = PartFolder(tmp_path / "parts", settings, NAMES, count=2)
        folder.open()
        return sorted(folder.load().tags)

    assert known({"grid": (0.1, 0.2)}) == []
    PartFolder(tmp_path / "parts", {"grid": (0.1, 0.2)}, NAMES, count=2).save(whole((1, 4)))
    assert known({"grid": (0.1, 0.2)}) == [1, 4]
    assert known({"grid": (0.1, 0.3)}) == []


def test_a_damaged_part_is_one_line(tmp_path):
    folder = PartFolder(tmp_path, {}, NAMES)
    folder.save(whole((1, 2), count=1))
    (path,) = tmp_path.glob("*.npz")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(
        UserError, match=r"00000001\.npz: .*expected a part of an evaluation, delete it"
    ) as failure:
        folder.load()
    assert "\n" not in str(failure.value)


def test_a_part_is_due_after_its_time(tmp_path):
    assert PartFolder(tmp_path, {}, NAMES, seconds=0).is_due()
    assert not PartFolder(tmp_path, {}, NAMES, seconds=100).is_due()
