"""The base of the builders: verifies examples and writes them shard by shard, so that a stopped run can go on.

The data directory holds NAME/[CONFIG/]VERSION with the array_record files, TFDS's own dataset_info.json and
features.json, and report.json. Until all are done, finished shards are in VERSION.partial beside it.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from PIL import Image
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder

from rml_jax.data.fingerprint import pack_items
from rml_jax.data.images import decode_image
from rml_jax.data.masks import check_same_size
from rml_jax.data.sources.prepared import REPORT_FILE, read_report
from rml_jax.labels import IGNORE
from rml_jax.utils.errors import UserError
from rml_jax.utils.progress import Progress

SHARD_IMAGES = 512  # A stopped run loses at most as many.
# Images read ahead of the writer and kept in memory as files.
_BLOCK = 32
_SHOWN_REASONS = 10


@dataclasses.dataclass(frozen=True)
class Planned:
    """An image to prepare.

    Attributes:
      id: its name in the data set, unique within the split.
      where: path of its file, for messages.
      load: returns the file's bytes, the numbers 0..C-1 of its tags, and its mask (uint8 [H, W], 0 background, 1..C,
        255 ignore) or None. Raises UserError if one of them is unusable.
    """

    id: str
    where: str
    load: Callable[[], tuple[bytes, tuple[int, ...], np.ndarray | None]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to write.

    Attributes:
      splits: dict from the name of a split to its list of Planned, in the order of the data set.
      notes: dict from the name of a split to the origin of its list, as text.
      sources: paths of what is read, for the report.
    """

    splits: dict[str, list[Planned]]
    notes: dict[str, str]
    sources: list[str]


@dataclasses.dataclass
class _Shard:
    """A part of a split: the path of its unfinished file, its images, and the record of their outcome or None."""

    split: str
    path: Path
    planned: list[Planned]
    record: dict | None


class PreparedBuilder(FileReaderBuilder):
    """Base class. An example is `id`, `image` (the file's bytes, in any image format), `mask` (PNG) and `tags`.

    Images that can't be decoded, or whose mask or tags are wrong, are left out and reported. Examples keep the order
    of the plan. Subclasses define `class_names`, `tags_from` (the origin of the tags), `settings` and `plan`.

    Args:
      max_bad: share of the images that may be left out.
      options: those of `tfds.core.DatasetBuilder`: data_dir, config.
    """

    VERSION = tfds.core.Version("1.0.0")
    OFFICIAL: dict[str, int] = {}  # noqa: RUF012 (images per split of the published data set)
    category_ids: tuple[int, ...] = ()  # of the classes, in the annotation files
    upright = False  # whether a reader must apply the EXIF orientation

    def __init__(self, *, max_bad=0.01, **options):
        self._max_bad = max_bad
        super().__init__(file_format=tfds.core.FileFormat.ARRAY_RECORD, **options)

    class_names: tuple[str, ...]
    tags_from: str

    def settings(self):
        """Returns what determines the result besides the files of a published data set. JSON values."""
        raise NotImplementedError

    def plan(self, dl_manager):
        """Returns the Plan. Raises UserError if something is missing."""
        raise NotImplementedError

    def report(self):
        """Reads report.json of finished data."""
        return read_report(self.data_dir)

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(),
                "mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                "tags": tfds.features.Sequence(tfds.features.ClassLabel(names=list(self.class_names))),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _download_and_prepare(self, dl_manager, download_config=None):
        """Prepares the data. TFDS sets `data_dir` to a temporary folder and renames it afterwards."""
        plan = self.plan(dl_manager)
        partial = Path(self.data_dir).parent / f"{self.version}.partial"
        _open_partial(partial, self._fingerprint(plan))
        shards = [shard for split in plan.splits for shard in self._shards(plan, split, partial)]
        self._write_shards(shards)
        self._check_rejected(shards, partial)
        report = self._make_report(plan, shards)
        _write_text(partial / REPORT_FILE, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        for path in (partial / REPORT_FILE, *(shard.path for shard in shards)):
            path.replace(Path(self.data_dir, path.name))
        self.info.set_splits(tfds.core.SplitDict([self._split_info(split, shards) for split in plan.splits]))
        shutil.rmtree(partial)

    def _shards(self, plan, split, partial):
        """Yields the shards of a split, with the records of those that are finished."""
        planned, template = plan.splits[split], self._get_filename_template(split_name=split)
        parts = [planned[start : start + SHARD_IMAGES] for start in range(0, len(planned), SHARD_IMAGES)]
        for number, part in enumerate(parts):
            name = template.sharded_filepath(shard_index=number, num_shards=len(parts)).name
            yield _Shard(split, partial / name, part, _finished_record(partial / name))

    def _write_shards(self, shards):
        """Writes the unfinished shards and sets their records."""
        done = sum(len(shard.planned) for shard in shards if shard.record)
        progress = Progress(self.name, sum(len(shard.planned) for shard in shards), "images", start=done)
        for shard in shards:
            if not shard.record:
                update = functools.partial(lambda before, n: progress.update(before + n), done)
                shard.record = self._write_shard(shard.path, shard.planned, update)
                done += len(shard.planned)

    def _split_info(self, split, shards):
        shards = [shard for shard in shards if shard.split == split]
        return tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard.record["images"] for shard in shards],
            num_bytes=sum(Path(self.data_dir, shard.path.name).stat().st_size for shard in shards),
            filename_template=self._get_filename_template(split_name=split),
        )

    def _fingerprint(self, plan):
        """Returns a text that two runs share only if one can use the shards of the other."""
        ids = {split: [item.id for item in planned] for split, planned in plan.splits.items()}
        content = [self.settings(), self.class_names, ids, plan.sources, SHARD_IMAGES]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _write_shard(self, path, planned, progress):
        """Writes a shard under a temporary name and its record, then renames the shard. Returns the record."""
        sizes, items, counts = [], [], np.zeros(len(self.class_names), np.int64)
        record = {"rejected": {}, "without_mask": 0}
        serializer = tfds.core.ExampleSerializer(self.info.features.get_serialized_info())

        def examples():
            for item, result in _in_threads(functools.partial(self._load, serializer), planned, progress):
                if isinstance(result, UserError):
                    record["rejected"][item.id] = str(result)
                    continue
                example, numbers, has_mask, size = result
                record["without_mask"] += not has_mask
                items.append([item.id, sorted({int(number) for number in numbers})])
                sizes.append(size)
                counts[list(numbers)] += 1
                yield item.id, example

        temporary = path.with_name(path.name + ".tmp")
        try:
            tfds.core.ExampleWriter(tfds.core.FileFormat.ARRAY_RECORD).write(temporary, examples())
            record |= {"images": len(sizes), "sizes": sizes, "classes": counts.tolist(), "items": items}
            _record_path(path).write_text(json.dumps(record), encoding="utf-8")
            temporary.replace(path)
        # array_record has no exception of its own for a full disk.
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{path}: {error}, expected room to write (what was finished before is kept)"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        return record

    def _load(self, serializer, item):
        """Returns the serialized example, class numbers, whether there is a mask, and the size; or a UserError."""
        try:
            data, numbers, mask = item.load()
            image = decode_image(data, item.where, self.upright)
            size = image.shape[:2]
            if mask is not None:
                check_same_size(mask, image, f"mask of {item.where}")
            stored = _png(np.full(size, IGNORE, np.uint8) if mask is None else mask)
            example = {"id": item.id, "image": io.BytesIO(data), "mask": stored, "tags": numbers}
            serialized = serializer.serialize_example(self.info.features.encode_example(example))
        except UserError as error:
            return error
        except Exception as error:  # One bad item must not end the preparation of all others.
            return UserError(
                f"{item.where}: {type(error).__name__}: {error}, expected an image with its mask and tags"
            )
        return serialized, numbers, mask is not None, size

    def _check_rejected(self, shards, partial):
        """Raises UserError if too many images are bad. The next run then writes their shards again."""
        rejected = [reason for shard in shards for reason in shard.record["rejected"].values()]
        listed = sum(len(shard.planned) for shard in shards)
        if len(rejected) <= self._max_bad * listed:
            return
        for shard in shards:
            if shard.record["rejected"]:
                shard.path.unlink()
        _write_text(partial / "rejected.txt", "\n".join(rejected) + "\n")
        raise UserError(
            f"{len(rejected)} of {listed} images are bad, expected at most {self._max_bad:.2%} (--max_bad); "
            f"all of them: {partial / 'rejected.txt'}\n" + "\n".join(rejected[:_SHOWN_REASONS])
        )

    def _make_report(self, plan, shards):
        """Returns the content of report.json, which `report_lines` prints."""
        splits = {}
        for split, planned in plan.splits.items():
            records = [shard.record for shard in shards if shard.split == split]
            sizes = np.array([size for record in records for size in record["sizes"]]).reshape(-1, 2)
            if not len(sizes):
                raise UserError(f"{split}: no image is left of {len(planned)}")
            classes = np.sum([record["classes"] for record in records], axis=0).tolist()
            splits[split] = {
                "images": len(sizes),
                "official": self.OFFICIAL.get(split),
                "listed": len(planned),
                "list": plan.notes[split],
                "without_mask": sum(record["without_mask"] for record in records),
                "items": pack_items([item for record in records for item in record["items"]]),
                "bytes": sum(shard.path.stat().st_size for shard in shards if shard.split == split),
                "height": _spread(sizes[:, 0]),
                "width": _spread(sizes[:, 1]),
                "images_per_class": dict(zip(self.class_names, classes, strict=True)),
                "rejected": {
                    name: reason for record in records for name, reason in record["rejected"].items()
                },
            }
        return {
            "name": self.name,
            "class_names": list(self.class_names),
            **({"category_ids": list(self.category_ids)} if self.category_ids else {}),
            "tags_from": self.tags_from,
            "upright": self.upright,
            "settings": self.settings(),
            "sources": plan.sources,
            "splits": splits,
        }

    def _log_download_bytes(self):
        """Omits TFDS's line on an unknown size."""

    def _log_download_done(self):
        """Omits TFDS's line, which the report replaces."""


def report_lines(report):
    """Formats a report as lines of text."""
    lines = [f"{report['name']}, tags from {report['tags_from']}; read from {', '.join(report['sources'])}"]
    for split, facts in report["splits"].items():
        official = "" if facts["official"] is None else f" (officially {facts['official']})"
        height, width = facts["height"], facts["width"]
        lines += [
            f"{split}: {facts['images']} images{official}, {facts['bytes'] / 1e6:.1f} MB",
            f"  {facts['list']}; {facts['listed']} listed, {len(facts['rejected'])} rejected",
            f"  width {width[0]} to {width[2]}, median {width[1]}; height {height[0]} to {height[2]}, "
            f"median {height[1]}",
            "  images per class: "
            + ", ".join(f"{name} {count}" for name, count in facts["images_per_class"].items()),
        ]
        if facts["without_mask"]:
            lines.append(f"  without a mask: {facts['without_mask']}")
        lines += [f"  rejected: {reason}" for reason in facts["rejected"].values()]
    return lines


def _open_partial(partial, fingerprint):
    """Makes the folder of finished shards; deletes shards of another fingerprint."""
    path = partial / "fingerprint"
    if partial.exists() and not (path.is_file() and path.read_text() == fingerprint):
        shutil.rmtree(partial)
    partial.mkdir(exist_ok=True)
    path.write_text(fingerprint)


def _finished_record(path):
    """Returns the record of a whole shard, else None."""
    try:
        record = json.loads(_record_path(path).read_text(encoding="utf-8"))
        return (
            record
            if "items" in record and len(ArrayRecordDataSource(str(path))) == record["images"]
            else None
        )
    # array_record raises RuntimeError or ValueError for a missing or damaged file.
    except (OSError, RuntimeError, ValueError):
        return None


def _record_path(path):
    return path.with_name(path.name + ".json")


def _write_text(path, text):
    """Writes text that may hold file names, which need not be Unicode."""
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def _in_threads(function, items, progress):
    """Yields (item, function(item)) in order, with one thread per core and `_BLOCK` items in memory."""
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start in range(0, len(items), _BLOCK):
            block = items[start : start + _BLOCK]
            yield from zip(block, pool.map(function, block), strict=True)
            progress(start + len(block))


def _png(mask):
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    file.seek(0)
    return file


def _spread(values):
    """Returns the least, median and greatest of whole numbers."""
    return [int(values.min()), int(np.median(values)), int(values.max())]
