"""Input pipeline: decoded and augmented images per second, against the train step's demand and the decoding alone.

    python -m benchmarks.pipeline [--json FILE] [--root VOC2012 --split train_aug] [--prepared DIR]
        [--workers 0,1,2] [--seconds 4]

Without --root it writes photographs in VOC's layout: 500x375 JPEGs of about 90 KB, tagged by a CSV file. First the
parts of one example are timed alone on one core, then the grain pipeline with 0, 1 and 2 workers (0: threads of this
process). With --prepared, the output of `rml-jax prepare` for --root, its batches are compared with the folder's, and
both are timed in alternation. One repeat lasts `--seconds`. The demand is read from the results of
`benchmarks.train_step` in the folder of FILE.
"""

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


def main(_):
    chosen, result = measure.start(
        root=Path, prepared=Path, split="train", batch=16, workers="0,1,2", seconds=4.0, repeats=3
    )
    with tempfile.TemporaryDirectory() as folder:
        root = chosen.root or make_photos(Path(folder))
        measure.write_json(result | run(chosen, root), chosen.json)


def run(chosen, root):
    """Returns the result: photographs, milliseconds of the parts, images per second, demand."""
    names = read_list(_split_file(root, chosen.split))[:PHOTOS]
    paths = [root / "JPEGImages" / f"{name}.jpg" for name in names]
    files = [path.read_bytes() for path in paths]
    seconds = measure.interleave(_parts(paths, files), chosen.repeats, warm_up=1)
    milliseconds = {name: 1e3 * np.median(taken, axis=0) / len(files) for name, taken in seconds.items()}
    result = {
        "mean_file_bytes": round(float(np.mean([len(data) for data in files]))),
        "milliseconds_per_image": {name: wall for name, (wall, _) in milliseconds.items()},
        "cpu_milliseconds_per_image": {name: cpu for name, (_, cpu) in milliseconds.items()},
        "images_per_second_and_core": {name: 1e3 / wall for name, (wall, _) in milliseconds.items()},
    }
    sources = {"pipeline": open_source(root, chosen.split)}
    if chosen.prepared:
        sources["prepared"] = PreparedData(chosen.prepared, chosen.split)
        result["same_batches"] = _same_batches(sources, chosen.batch)
    for workers in map(int, chosen.workers.split(",")):
        for name, (rates, shares) in _pipeline_rates(sources, chosen, workers).items():
            rate, busy = measure.summary(rates), float(np.median(shares))
            row = {"images_per_second": rate, "cores_busy": busy}
            row["images_per_second_and_core"] = rate["median"] / busy
            result.setdefault(name, {})[f"{workers} workers"] = row
    result["demand_images_per_second"] = _demand(chosen.json)
    return result


def make_photos(folder):
    """Writes photographs with the size of VOC's, in VOC's layout: random parts of scikit-learn's two, with noise.

    Returns:
      The root folder.
    """
    rng = np.random.default_rng(0)
    for name in ("JPEGImages", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    photos = load_sample_images().images
    names = [f"{number:03d}" for number in range(PHOTOS)]
    for number, name in enumerate(names):
        image = Image.fromarray(photos[number % len(photos)])
        width = int(rng.integers(360, 560))
        height = width * 3 // 4
        left, top = rng.integers(image.width - width), rng.integers(image.height - height)
        image = image.crop((left, top, left + width, top + height)).resize(SIZE, Image.Resampling.LANCZOS)
        noisy = np.asarray(image) + rng.normal(0, 6, (SIZE[1], SIZE[0], 3))
        pixels = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}.jpg", quality=93)
    _split_file(folder, "train").write_text("\n".join(names) + "\n")
    (folder / "tags.csv").write_text("image,tags\n" + "".join(f"{name},photo\n" for name in names))
    return folder


def open_source(root, split):
    """Returns the training source of `make_photos`, or of a VOC folder, whose masks give the tags."""
    if (root / "tags.csv").exists():
        return VocFolder(root, split, ("photo",), (1,), tags_file=str(root / "tags.csv"))
    return VocFolder(root, split, [f"class{n}" for n in range(1, 21)], range(1, 21))


def _split_file(root, split):
    return root / "ImageSets" / "Segmentation" / f"{split}.txt"


def _parts(paths, files):
    """Returns the parts by name, functions without arguments that run one part for all files on this thread."""
    images = [decode_image(data, "photo") for data in files]
    views = [_augment(image, number) for number, image in enumerate(images)]
    batch = views[:16]
    parts = {
        "read file": lambda: [path.read_bytes() for path in paths],
        "decode": lambda: [decode_image(data, "photo") for data in files],
        "decode by pillow": lambda: [np.array(Image.open(io.BytesIO(data)).convert("RGB")) for data in files],
        "augment": lambda: [_augment(image, number) for number, image in enumerate(images)],
        "resize the whole image": lambda: [_resize_whole(image, n) for n, image in enumerate(images)],
        "batch": lambda: [np.stack([v["image"] for v in batch]) for _ in range(len(files) // len(batch))],
        "all but grain": lambda: [
            _augment(decode_image(path.read_bytes(), path), number) for number, path in enumerate(paths)
        ],
    }
    with contextlib.suppress(ImportError):  # for comparison only; not a dependency
        import cv2

        cv2.setNumThreads(1)
        parts["decode by opencv"] = lambda: [
            cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
            for data in files
        ]
    return parts


def _augment(image, seed):
    return augment(image, np.random.default_rng(seed), crop_size=CROP, scale=SCALE, flip=True)


def _resize_whole(image, seed):
    """Resizes the whole image, as `augment` would if it did not resize only the crop's window."""
    height, width = rescaled_size(image.shape[:2], np.random.default_rng(seed).uniform(*SCALE))
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def _batches(source, batch_size, workers):
    config = default_config()
    config.train.batch_size, config.train.crop_size = batch_size, CROP
    config.augment.scale, config.data.workers = SCALE, workers
    return contextlib.closing(train_batches(config, source))


def _same_batches(sources, batch_size):
    """Compares the first batches of two sources. Returns their number; raises ValueError if one differs."""
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(_batches(source, batch_size, 0)) for source in sources.values()]
        for step in range(_COMPARED):
            one, other = (next(stream) for stream in streams)
            if not all(np.array_equal(one[key], other[key]) for key in ("image", "box", "tags")):
                raise ValueError(f"batch {step} of {' and '.join(sources)} differs")
    return _COMPARED


def _pipeline_rates(sources, chosen, workers):
    """Returns for each source the pipeline's images per second and busy cores, each a list over the repeats."""
    results = {name: ([], []) for name in sources}
    with contextlib.ExitStack() as stack:
        streams = {
            name: stack.enter_context(_batches(source, chosen.batch, workers))
            for name, source in sources.items()
        }
        for _ in range(chosen.repeats):
            for name, batches in streams.items():
                # Starts the workers; batches that were prefetched while another source ran are not counted.
                for _ in range(8):
                    next(batches)
                begin, busy, count = time.perf_counter(), _busy_seconds(), 0
                while time.perf_counter() - begin < chosen.seconds:
                    count += len(next(batches)["image"])
                elapsed = time.perf_counter() - begin
                results[name][0].append(count / elapsed)
                results[name][1].append((_busy_seconds() - busy) / elapsed)
    return results


def _busy_seconds():
    """Returns the CPU time of this process and its children so far (Linux)."""
    children = Path("/proc/self/task").glob("*/children")
    pids = {"self", *(pid for path in children for pid in path.read_text().split())}
    ticks = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):
            fields = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _demand(path):
    """Returns the images per second that the recorded train steps consume, by file."""
    demand = {}
    for record in sorted(path.parent.glob("train_step*.json")) if path else ():
        content = json.loads(record.read_text(encoding="utf-8"))
        step = content["step_seconds"]["ours"]["median"]
        demand[record.stem] = content["settings"]["batch"] / step
    return demand


def _leave_to_argparse(argv):
    """Marks absl's flags as parsed, which grain's worker processes need; argparse reads the arguments."""
    flags.FLAGS(argv[:1])
    return argv


if __name__ == "__main__":
    app.run(main, flags_parser=_leave_to_argparse)
