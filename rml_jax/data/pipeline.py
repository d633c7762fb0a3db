"""Training batches: an endless, shuffled, augmented, resumable grain stream over a random-access source."""

import functools

import grain

from rml_jax.data.augment import augment
from rml_jax.utils.errors import UserError

# Elements are whole batches, so grain's defaults (16 threads, 500 elements, made for single examples) would
# keep gigabytes of crops in memory. A few batches ahead hide the decoding just as well.
_READ_OPTIONS = grain.ReadOptions(num_threads=4, prefetch_buffer_size=4)


def train_batches(
    source,
    *,
    batch_size,
    crop_size,
    scale,
    flip,
    seed,
    workers=0,
    process_index=0,
    process_count=1,
):
    """Endless iterator over this process's share of the training batches (METHOD.md section 5).

    There is one global stream: each epoch in another order, each example augmented by random numbers that
    depend on (seed, place in the stream). It is cut into batches, of which process p of n takes every n-th, from
    p on. So all processes make the same number of steps, an epoch's examples are shared out without overlap, and
    the batches of n processes, one after the other, are the batch that one process with n times their size has.
    Batches run across the ends of epochs: no example is dropped, and a source smaller than a batch will do.

    Args:
      source: `len(source)` and `source[i]`, a dict with `image` (uint8 [H, W, 3]) and `tags` (float32 [C]);
        other keys never leave this function, a mask least of all. Read by several threads at once.
      batch_size: B, examples per batch of this process.
      crop_size: S.
      scale: (low, high) of the random scale, see `augment`.
      flip: whether to mirror at random, see `augment`.
      seed: 0 .. 2**32 - 1, for order and augmentation.
      workers: extra processes that decode and augment; 0 uses threads of this process. The batches are the
        same for any number. More than 0 needs parsed absl flags (`absl.app.run`) and a main module that can
        be imported.
      process_index: p, this host's number.
      process_count: n, the number of hosts.

    Returns:
      grain.DatasetIterator of dicts with `image` (uint8 [B, S, S, 3]), `box` (int32 [B, 4]) and `tags`
      (float32 [B, C]). `get_state()` and `set_state()` resume it exactly, for the same number of workers
      only. `close()` it after use.

    Raises:
      UserError: for a batch or crop size below 1 or a range of scales that is empty or not positive. Errors
        of the source reach the caller of `next()`, with any number of workers.
    """
    _check_settings(batch_size, crop_size, scale)
    to_example = functools.partial(_to_example, crop_size=crop_size, scale=tuple(scale), flip=flip)
    stream = (
        grain.MapDataset.source(source)
        .seed(seed)
        .shuffle()
        .repeat()
        # Before the slice: grain seeds each call by the element's index, and after it that index would be the
        # process's own count, with the same scale, flip and offsets on every process.
        .random_map(to_example)
        .batch(batch_size, drop_remainder=True)
        # Batches that belong to other processes are never made.
        .slice(slice(process_index, None, process_count))
        .to_iter_dataset(_READ_OPTIONS)
    )
    if workers:
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(stream)


def configured_batches(config, source, process_index=0, process_count=1):
    """`train_batches` as a run's configuration has them.

    Args:
      config: ConfigDict of a run; `train.batch_size` is over all processes.
      source, process_index, process_count: see `train_batches`.

    Returns:
      See `train_batches`.

    Raises:
      UserError: see `train_batches`.
    """
    return train_batches(
        source,
        batch_size=config.train.batch_size // process_count,
        crop_size=config.train.crop_size,
        scale=config.augment.scale,
        flip=config.augment.flip,
        seed=config.train.seed,
        workers=config.data.workers,
        process_index=process_index,
        process_count=process_count,
    )


def _to_example(item, rng, *, crop_size, scale, flip):
    view = augment(item["image"], rng, crop_size=crop_size, scale=scale, flip=flip)
    return {**view, "tags": item["tags"]}


def _check_settings(batch_size, crop_size, scale):
    for name, value in (("batch_size", batch_size), ("crop_size", crop_size)):
        if value < 1:
            raise UserError(f"{name} is {value}: expected at least 1")
    if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
        raise UserError(f"scale is {tuple(scale)}: expected (low, high) with 0 < low <= high")
