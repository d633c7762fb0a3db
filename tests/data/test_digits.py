"""Digit scenes: a function of (split, seed, index), with tags and masks that tell the truth."""

import pickle

import numpy as np
import pytest

from rml_jax.data.sources import digits
from rml_jax.data.sources.digits import DigitScenes
from rml_jax.utils.errors import UserError


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def test_item():
    source = DigitScenes("val", 3, with_masks=True)
    item = source[2]
    assert len(source) == 3
    assert source.class_names == tuple("0123456789")
    assert item.keys() == {"id", "image", "tags", "mask"}
    assert item["id"] == "val_000002"
    assert (item["image"].dtype, item["image"].shape) == (np.uint8, (64, 64, 3))
    assert (item["mask"].dtype, item["mask"].shape) == (np.uint8, (64, 64))
    assert (item["tags"].dtype, item["tags"].shape) == (np.float32, (10,))


def test_scenes_do_not_depend_on_the_order_of_access():
    one, other = (DigitScenes("train", 6, seed=3, with_masks=True) for _ in range(2))
    in_order = [one[i] for i in range(6)]
    mixed = {i: other[i] for i in (5, 2, 2, 0, 4, 1, 3)}
    assert all(same(in_order[i], mixed[i]) for i in range(6))


def test_length_of_the_source_changes_no_scene():
    assert same(DigitScenes("train", 5)[4], DigitScenes("train", 100_000)[4])


@pytest.mark.parametrize(
    ("split", "seed", "index"),
    [("train", 0, 1), ("train", 1, 0), ("val", 0, 0)],
    ids=["index", "seed", "split"],
)
def test_another_index_seed_or_split_is_another_scene(split, seed, index):
    one = DigitScenes("train", 2)[0]["image"]
    other = DigitScenes(split, 2, seed)[index]["image"]
    assert (one != other).mean() > 0.5


def test_training_and_validation_share_no_scan():
    scans = {split: digits._scans(split)[0] for split in ("train", "val")}
    assert (len(scans["train"]), len(scans["val"])) == (1437, 360)
    as_bytes = {split: {scan.tobytes() for scan in array} for split, array in scans.items()}
    assert not as_bytes["train"] & as_bytes["val"]
    assert all(set(digits._scans(split)[1]) == set(range(10)) for split in scans)


@pytest.mark.parametrize("split", ["train", "val"])
def test_tags_are_the_classes_in_the_mask(split):
    source = DigitScenes(split, 150, with_masks=True, digits=(1, 3))
    seen = set()
    for item in map(source.__getitem__, range(150)):
        classes = set(np.unique(item["mask"]).tolist()) - {0}
        assert classes, "every scene has a digit"
        assert classes <= set(range(1, 11))
        assert {1 + number for number in np.flatnonzero(item["tags"])} == classes
        assert set(item["tags"].tolist()) <= {0.0, 1.0}
        seen |= classes
    assert seen == set(range(1, 11))


def test_number_of_digits():
    counts = [DigitScenes("train", 60, digits=(1, 1))[i]["tags"].sum() for i in range(60)]
    assert set(counts) == {1.0}
    counts = [DigitScenes("train", 60)[i]["tags"].sum() for i in range(60)]
    assert set(counts) == {1.0, 2.0}


def test_masks_come_only_when_asked_for_and_change_nothing_else():
    with_masks, without = (DigitScenes("train", 4, with_masks=wanted) for wanted in (True, False))
    for index in range(4):
        item, bare = with_masks[index], without[index]
        assert bare.keys() == {"id", "image", "tags"}
        item.pop("mask")
        assert same(item, bare)


def test_digits_are_where_the_mask_says():
    """Digits are light, the photograph behind them is darkened to 0.3."""
    source = DigitScenes("val", 40, with_masks=True, background_brightness=0.3)
    differences = []
    for item in map(source.__getitem__, range(40)):
        brightness, digit = item["image"].mean(axis=-1), item["mask"] > 0
        assert 0.02 < digit.mean() < 0.6
        elsewhere = np.roll(digit, 16, axis=(0, 1))
        assert brightness[digit].mean() > brightness[elsewhere].mean(), "no other place fits as well"
        differences.append(brightness[digit].mean() - brightness[~digit].mean())
    assert np.mean(differences) > 60


@pytest.mark.parametrize("label", range(10))
def test_mask_has_the_shape_of_a_scan_of_its_class(label, monkeypatch):
    """With a single scan to choose from, a mask is that scan, enlarged: class, place and orientation fit."""
    images, targets = digits._scans("val")
    scan = images[np.flatnonzero(targets == label)[0]]
    monkeypatch.setattr(digits, "_scans", lambda split: (scan[None], np.array([label])))
    mask = DigitScenes("val", 1, with_masks=True, digits=(1, 1), digit_size=(64, 64))[0]["mask"]
    assert set(np.unique(mask)) == {0, 1 + label}
    share = (mask > 0).reshape(8, 8, 8, 8).mean(axis=(1, 3))
    assert np.corrcoef(share.ravel(), scan.ravel())[0, 1] > 0.9


def test_second_digit_hides_at_most_a_fifth_of_the_first():
    mask = np.zeros((64, 64), np.uint8)
    mask[:32, :32] = 1
    glyph = np.ones((30, 30), bool)
    rng = np.random.default_rng(0)
    places = [digits._free_place(mask, glyph, rng) for _ in range(50)]
    hidden = [mask[top : top + 30, left : left + 30].sum() for top, left in filter(None, places)]
    assert max(hidden) <= 0.2 * 32 * 32
    assert max(hidden) > 0, "a little overlap is allowed"


def test_digit_without_room_is_left_out():
    covered = np.ones((40, 40), np.uint8)
    assert digits._free_place(covered, np.ones((40, 40), bool), np.random.default_rng(0)) is None


def test_scene_settings():
    source = DigitScenes(
        "train", 5, size=40, digits=(1, 1), digit_size=(20, 20), background_brightness=0.0, with_masks=True
    )
    for item in map(source.__getitem__, range(5)):
        assert item["image"].shape == (40, 40, 3)
        rows, columns = np.nonzero(item["image"].any(axis=-1))
        assert max(np.ptp(rows), np.ptp(columns)) < 20, "all that is not black lies in one square of 20"
        assert item["image"][item["mask"] > 0].mean() > 100


def test_pickles():
    source = DigitScenes("val", 3, seed=5, with_masks=True, size=48, digit_size=(20, 30))
    data = pickle.dumps(source)
    assert len(data) < 1000, "no pictures inside: worker processes load their own"
    assert same(pickle.loads(data)[1], source[1])


@pytest.mark.parametrize("index", [3, -1])
def test_no_scene_beyond_the_ends(index):
    with pytest.raises(IndexError, match=f"scene {index} of 3"):
        DigitScenes("val", 3)[index]


def test_unknown_split():
    with pytest.raises(UserError, match="digits has no split 'test': expected one of train, val"):
        DigitScenes("test", 3)


def test_empty_split():
    with pytest.raises(UserError, match="'train' is empty: expected at least 1 scene, found 0"):
        DigitScenes("train", 0)


def test_digit_larger_than_the_scene():
    with pytest.raises(UserError, match=r"digit_size is \(28, 44\): expected at most scene.size = 32"):
        DigitScenes("train", 3, size=32)
