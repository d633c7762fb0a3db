"""Training batches: an endless, shuffled, augmented, resumable grain stream over a random-access source."""

import functools

import grain

from rml_jax.data.augment import augment

# Elements are whole batches, so grain's defaults for single examples (16 threads, 500 elements) would keep gigabytes
# of crops in memory. Prefetching a few batches hides the decoding as well.
_READ_OPTIONS = grain.ReadOptions(num_threads=4, prefetch_buffer_size=4)


def train_batches(config, source, process_index=0, process_count=1):
    """Returns an endless iterator over this process's share of the training batches.

    There is one global stream, shuffled anew in each epoch, whose examples are augmented by random numbers that
    depend on the seed and the position in the stream. It is cut into batches, of which process p of n takes every
    n-th, starting with p. Hence all processes make the same number of steps, an epoch's examples are distributed
    without overlap, and the concatenated batches of n processes equal the batch of one process with n times their
    size. Batches cross the ends of epochs: no example is dropped, and a source may be smaller than a batch.

    Args:
      config: ConfigDict of a run, checked by `check_config`. Uses `train.batch_size` (over all processes),
        `train.crop_size` (S), `train.seed`, `augment` (see `rml_jax.data.augment`) and `data.workers`, the number of
        processes that decode and augment; 0 uses threads of this process. Batches do not depend on it. More than 0
        needs parsed absl flags (`absl.app.run`) and a main module that can be imported.
      source: `len(source)` and `source[i]`, a dict with `image` (uint8 [H, W, 3]) and `tags` (float32 [C]).
        Other keys, such as a mask, are dropped. It must be thread-safe.
      process_index: p.
      process_count: n.

    Returns:
      grain.DatasetIterator of dicts with `image` (uint8 [B, S, S, 3]), `box` (int32 [B, 4]) and `tags`
      (float32 [B, C]), B = `train.batch_size` // n. `get_state()` and `set_state()` resume it exactly, for the same
      number of workers only. `close()` it after use. `next()` raises the errors of the source.
    """
    to_example = functools.partial(
        _to_example,
        crop_size=config.train.crop_size,
        scale=tuple(config.augment.scale),
        **{name: value for name, value in config.augment.items() if name != "scale"},
    )
    stream = (
        grain.MapDataset.source(source)
        .seed(config.train.seed)
        .shuffle()
        .repeat()
        # Before the slice: grain seeds each call by the element's index. After the slice, that index would count the
        # process's own elements, and all processes would draw the same scales, flips and offsets.
        .random_map(to_example)
        .batch(config.train.batch_size // process_count, drop_remainder=True)
        # Batches of other processes are never computed.
        .slice(slice(process_index, None, process_count))
        .to_iter_dataset(_READ_OPTIONS)
    )
    if config.data.workers:
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=config.data.workers))
    return iter(stream)


def _to_example(item, rng, **settings):
    view = augment(item["image"], rng, **settings)
    return {**view, "tags": item["tags"]}
