"""Input pipeline: decoded and augmented images a second, against the train step's demand and what decoding allows.

    python -m benchmarks.pipeline [--json FILE] [--root VOC2012 --split train_aug] [--prepared DIR] [--seconds 4]

Without --root it makes its own photographs in VOC's layout: 500x375 JPEGs of about 90 KB, tagged by a CSV file. First
the parts of one example's way are timed alone on one core, then the grain pipeline with 0, 1 and 2 workers (0:
threads of this process). With --prepared, data that `rml-jax prepare` made of --root, its batches are compared
with the folder's, and both are timed in turns. The demand is read from the records of `benchmarks.train_step` beside
FILE.
"""

import argparse
import contextlib
import io
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks import measure
from rml_jax.config import default_config
from rml_jax.data.augment import augment, rescaled_size
from rml_jax.data.images import decode_image
from rml_jax.data.pipeline import train_batches
from rml_jax.data.sources.prepared import PreparedData
from rml_jax.data.sources.voc import VocFolder
from rml_jax.data.tags import read_list

CROP, SCALE = 320, (0.5, 2.0)
PHOTOS, SIZE = 64, (500, 375)
_COMPARED = 100  # batches


def main(argv):
    parser = argparse.ArgumentParser("python -m benchmarks.pipeline")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--root", type=Path, help="folder in VOC's layout, instead of photographs made here")
    parser.add_argument("--prepared", type=Path, help="folder of prepared data, made from --root")
    parser.add_argument("--split", default="train")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one repeat")
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args(argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        root = chosen.root or make_photos(Path(folder))
        measure.write_json(run(chosen, root), chosen.json)


def run(chosen, root):
    """The record: environment, photographs, seconds of the parts, images a second, demand."""
    paths = [root / "JPEGImages" / f"{name}.jpg" for name in read_list(_split_file(root, chosen.split))]
    paths = paths[:PHOTOS]
    files = [path.read_bytes() for path in paths]
    result = {"environment": measure.environment(), "settings": {**vars(chosen), "json": None}}
    result["settings"]["root"] = "own photographs" if chosen.root is None else "--root"
    result["settings"]["prepared"] = "--prepared" if chosen.prepared else None
    result["mean_file_bytes"] = round(float(np.mean([len(data) for data in files])))
    parts = measure.interleave(_parts(paths, files), chosen.repeats + 1)
    medians = {name: measure.summary(seconds[1:])["median"] for name, seconds in parts.items()}
    result["milliseconds_per_image"] = {name: 1e3 * median for name, median in medians.items()}
    result["images_per_second_and_core"] = {name: 1 / median for name, median in medians.items()}
    sources = {"pipeline": open_source(root, chosen.split)}
    if chosen.prepared:
        sources["prepared"] = PreparedData(chosen.prepared, chosen.split)
        result["same_batches"] = _same_batches(sources, chosen.batch)
    for workers in chosen.workers:
        for name, (rates, shares) in _pipeline_rates(sources, chosen, workers).items():
            result.setdefault(name, {})[f"{workers} workers"] = {
                "images_per_second": measure.summary(rates),
                "cores_busy": measure.summary(shares)["median"],
                "images_per_second_and_core": measure.summary(rates)["median"]
                / measure.summary(shares)["median"],
            }
    result["demand_images_per_second"] = _demand(chosen.json)
    return result


def make_photos(folder):
    """Photographs of VOC's size and bytes in VOC's layout: random parts of scikit-learn's two, with sensor noise.

    Returns:
      The root folder.
    """
    rng = np.random.default_rng(0)
    for name in ("JPEGImages", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    photos = load_sample_images().images
    names = [f"{number:03d}" for number in range(PHOTOS)]
    for number, name in enumerate(names):
        picture = Image.fromarray(photos[number % len(photos)])
        width = int(rng.integers(360, 560))
        height = width * 3 // 4
        left, top = rng.integers(picture.width - width), rng.integers(picture.height - height)
        picture = picture.crop((left, top, left + width, top + height)).resize(SIZE, Image.Resampling.LANCZOS)
        noisy = np.asarray(picture) + rng.normal(0, 6, (SIZE[1], SIZE[0], 3))
        pixels = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}.jpg", quality=93)
    _split_file(folder, "train").write_text("\n".join(names) + "\n")
    (folder / "tags.csv").write_text("image,tags\n" + "".join(f"{name},photo\n" for name in names))
    return folder


def open_source(root, split):
    """The training source of the photographs made here, or of a VOC folder, whose masks then give the tags."""
    if (root / "tags.csv").exists():
        return VocFolder(root, split, ("photo",), (1,), tags_file=str(root / "tags.csv"))
    return VocFolder(root, split, [f"class{n}" for n in range(1, 21)], range(1, 21))


def _split_file(root, split):
    return root / "ImageSets" / "Segmentation" / f"{split}.txt"


def _parts(paths, files):
    """Functions that give the seconds per image of each part, on this thread."""
    images = [decode_image(data, "photo") for data in files]
    views = [_augment(image, number) for number, image in enumerate(images)]
    batch = views[:16]
    parts = {
        "read file": lambda: [path.read_bytes() for path in paths],
        "decode": lambda: [decode_image(data, "photo") for data in files],
        "decode by pillow": lambda: [np.array(Image.open(io.BytesIO(data)).convert("RGB")) for data in files],
        "augment": lambda: [_augment(image, number) for number, image in enumerate(images)],
        "resize the whole picture": lambda: [_resize_whole(image, n) for n, image in enumerate(images)],
        "batch": lambda: [
            np.stack([view["image"] for view in batch]) for _ in range(len(files) // len(batch))
        ],
        "all but grain": lambda: [
            _augment(decode_image(path.read_bytes(), path), number) for number, path in enumerate(paths)
        ],
    }
    with contextlib.suppress(ImportError):  # For comparison only: no part of the project needs it.
        import cv2

        cv2.setNumThreads(1)
        parts["decode by opencv"] = lambda: [_decode_by_opencv(cv2, data) for data in files]
    return {name: lambda part=part: _seconds(part) / len(files) for name, part in parts.items()}


def _augment(image, seed):
    return augment(image, np.random.default_rng(seed), crop_size=CROP, scale=SCALE, flip=True)


def _resize_whole(image, seed):
    """What `augment` would have to do first if it didn't make the crop's window alone."""
    height, width = rescaled_size(image.shape[:2], np.random.default_rng(seed).uniform(*SCALE))
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def _decode_by_opencv(cv2, data):
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def _seconds(function):
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def _batches(source, batch_size, workers):
    config = default_config()
    config.train.batch_size, config.train.crop_size = batch_size, CROP
    config.augment.scale, config.data.workers = SCALE, workers
    return contextlib.closing(train_batches(config, source))


def _same_batches(sources, batch_size):
    """How many of the first batches of two sources were compared, all of them equal in every value."""
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(_batches(source, batch_size, 0)) for source in sources.values()]
        for step in range(_COMPARED):
            one, other = (next(stream) for stream in streams)
            if not all(np.array_equal(one[key], other[key]) for key in ("image", "box", "tags")):
                raise ValueError(f"batch {step} of {' and '.join(sources)} differs")
    return _COMPARED


def _pipeline_rates(sources, chosen, workers):
    """Of each source, images a second of the grain pipeline and the cores that it kept busy, one each per repeat."""
    results = {name: ([], []) for name in sources}
    with contextlib.ExitStack() as stack:
        streams = {
            name: stack.enter_context(_batches(source, chosen.batch, workers))
            for name, source in sources.items()
        }
        for _ in range(chosen.repeats):
            for name, batches in streams.items():
                for _ in range(
                    8
                ):  # Starts the workers; what was prepared ahead while another one ran is not counted.
                    next(batches)
                begin, busy, count = time.perf_counter(), _busy_seconds(), 0
                while time.perf_counter() - begin < chosen.seconds:
                    count += len(next(batches)["image"])
                elapsed = time.perf_counter() - begin
                results[name][0].append(count / elapsed)
                results[name][1].append((_busy_seconds() - busy) / elapsed)
    return results


def _busy_seconds():
    """Processor time of this process and its children so far (Linux)."""
    children = Path("/proc/self/task").glob("*/children")
    pids = {"self", *(pid for path in children for pid in path.read_text().split())}
    ticks = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):
            fields = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _demand(path):
    """Images a second that the recorded train steps take, by file and contestant."""
    demand = {}
    for record in sorted(path.parent.glob("train_step*.json")) if path else ():
        content = json.loads(record.read_text(encoding="utf-8"))
        step = content["step_seconds"]["ours"]["median"]
        demand[record.stem] = content["settings"]["batch"] / step
    return demand


def _leave_to_argparse(argv):
    """Absl's flags count as parsed, which grain's worker processes need; the arguments stay for `main`."""
    flags.FLAGS(argv[:1])
    return argv


if __name__ == "__main__":
    app.run(main, flags_parser=_leave_to_argparse)
