"""The training stream: what it lets through, its order, its shares, and that it resumes exactly."""

import contextlib
import json

import numpy as np
import pytest
from absl import flags

from rml_jax.config import default_config
from rml_jax.data.pipeline import train_batches
from rml_jax.data.sources.voc import VocFolder
from rml_jax.utils.errors import UserError


@pytest.fixture(autouse=True)
def _parsed_flags():
    """Grain's worker processes read absl flags, which the commands mark as parsed."""
    flags.FLAGS.mark_as_parsed()


def numbered_source(count):
    """Images of noise; the only tag is the image's number."""
    rng = np.random.default_rng(0)
    return [
        {
            "id": str(number),
            "image": rng.integers(1, 256, (20, 30, 3)).astype(np.uint8),
            "tags": np.float32([number]),
        }
        for number in range(count)
    ]


def open_voc(files, with_masks=False):
    return VocFolder(files.root, "train", files.class_names, files.mask_values, with_masks=with_masks)


def make_config(batch_size=1, seed=0, workers=0):
    config = default_config()
    config.train.batch_size, config.train.crop_size, config.train.seed = batch_size, 16, seed
    config.data.workers = workers
    return config


def take(source, steps, share=(0, 1), **settings):
    """The first batches, as a list."""
    with contextlib.closing(train_batches(make_config(**settings), source, *share)) as batches:
        return [next(batches) for _ in range(steps)]


def order(source, steps, **changes):
    """The numbers of the first examples of a numbered source."""
    return [int(number) for batch in take(source, steps, **changes) for number in batch["tags"][:, 0]]


def as_bytes(batches):
    return [{key: value.tobytes() for key, value in batch.items()} for batch in batches]


# What a batch holds


@pytest.mark.parametrize("with_masks", [False, True])
def test_batches_hold_image_box_and_tags_only(make_voc_folder, with_masks):
    batch = take(open_voc(make_voc_folder(), with_masks), 1, batch_size=4)[0]
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        "image": ((4, 16, 16, 3), "uint8"),
        "box": ((4, 4), "int32"),
        "tags": ((4, 2), "float32"),
    }


def shuffled_pixels(mask, rng):
    return rng.permutation(mask.ravel()).reshape(mask.shape)


def blanked_but_for_one_pixel_per_class(mask, rng):
    blank = np.zeros_like(mask)
    classes = np.setdiff1d(mask, [0, 255])
    blank[0, : len(classes)] = classes
    return blank


@pytest.mark.parametrize("spoil", [shuffled_pixels, blanked_but_for_one_pixel_per_class])
def test_no_pixel_of_a_training_mask_reaches_the_batches(make_voc_folder, spoil):
    files = make_voc_folder()
    before = as_bytes(take(open_voc(files), 8, batch_size=2))
    rng = np.random.default_rng(0)
    for image_id in (f"train_{number:03d}" for number in range(5)):
        mask = files.read_stored_mask(image_id)
        spoiled = spoil(mask, rng)
        assert not np.array_equal(spoiled, mask)
        files.write_mask(image_id, spoiled)
    assert as_bytes(take(open_voc(files), 8, batch_size=2)) == before


# Order


def test_seed_fixes_order_and_augmentation():
    source = numbered_source(7)
    assert as_bytes(take(source, 9)) == as_bytes(take(source, 9))
    assert as_bytes(take(source, 9)) != as_bytes(take(source, 9, seed=1))
    assert order(source, 9) != order(source, 9, seed=1)


def test_every_epoch_has_all_examples_in_another_order():
    numbers = order(numbered_source(7), 21)
    epochs = [tuple(numbers[start : start + 7]) for start in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(epochs)) == 3


GOLDEN = [1, 2, 4, 5, 9, 7, 8, 6, 0, 3, 9, 6, 1, 8, 2, 0, 3, 5, 4, 7]


def test_seed_0_gives_the_same_order_in_every_release():
    """Also a step of the pipeline that does nothing would change it, as grain gives each step its own seed."""
    assert order(numbered_source(10), 20) == GOLDEN


def test_every_epoch_augments_anew():
    views = take(numbered_source(1), 5)
    assert len({view["image"].tobytes() for view in views}) == 5


def test_source_may_be_smaller_than_a_batch():
    numbers = order(numbered_source(3), 1, batch_size=8)
    assert sorted(numbers[:3]) == sorted(numbers[3:6]) == [0, 1, 2]


# Shares of several hosts


def test_hosts_share_out_each_epoch():
    shares = [order(numbered_source(37), 37, batch_size=2, share=(index, 2)) for index in (0, 1)]
    # 37 is odd: host 0 has 19 of the first epoch and 18 of the second, host 1 the other way round.
    assert sorted(shares[0][:19] + shares[1][:18]) == list(range(37))
    assert sorted(shares[0][19:] + shares[1][18:]) == list(range(37))


def test_hosts_together_see_what_one_host_sees():
    source = numbered_source(5)
    alone = take(source, 4, batch_size=4)
    hosts = [take(source, 4, batch_size=4, share=(index, 2)) for index in (0, 1)]
    for step in range(4):
        for key in ("image", "box", "tags"):
            together = np.concatenate([host[step][key] for host in hosts])
            np.testing.assert_array_equal(alone[step][key], together)


# Workers and resuming


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_the_same_for_any_number_of_workers(workers):
    source = numbered_source(7)
    assert as_bytes(take(source, 6, batch_size=3, workers=workers)) == as_bytes(take(source, 6, batch_size=3))


@pytest.mark.parametrize("workers", [0, 2])
def test_resumes_exactly_across_an_epochs_end(workers):
    source = numbered_source(7)
    config = make_config(batch_size=2, workers=workers)
    with contextlib.closing(train_batches(config, source)) as batches:
        for _ in range(3):
            next(batches)
        state = json.dumps(batches.get_state())
        expected = [next(batches) for _ in range(5)]
    with contextlib.closing(train_batches(config, source)) as batches:
        batches.set_state(json.loads(state))
        assert as_bytes([next(batches) for _ in range(5)]) == as_bytes(expected)


# Errors


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_the_source_reach_the_caller(make_voc_folder, workers):
    files = make_voc_folder(train=1)
    source = open_voc(files)
    files.image_path("train_000").write_bytes(b"no picture")
    with pytest.raises(UserError) as error:
        take(source, 1, workers=workers)
    assert str(files.image_path("train_000")) in str(error.value)
    assert "\n" not in str(error.value)
