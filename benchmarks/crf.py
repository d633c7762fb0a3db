"""The dense CRF against pydensecrf on photographs: agreement of the marginals, and time with the lattice build.

    python -m benchmarks.crf --root VOC2012 [--split val] [--images 60] [--timed 6] [--json FILE]

`--root` is a folder in VOC's layout: JPEGImages, SegmentationClassAug and ImageSets/Segmentation. Probabilities are
made from the masks, of the classes in them: blurred, and mixed with smooth noise. For agreement, every other picture
loses a row and a column, so that its number of pixels is seldom a multiple of 4. For time, pictures are taken as they
are and enlarged to 500 pixels, VOC's size; both sides take the same arrays and return marginals on the host.
"""

import argparse
import time
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageFilter

from benchmarks import measure
from rml_jax.ops.crf import SETTINGS, dense_crf, dense_crf_batch
from tests.references.pydensecrf import by_pydensecrf

_CANVAS_STEP = 64


def main():
    parser = argparse.ArgumentParser("python -m benchmarks.crf")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--timed", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    lines = (chosen.root / "ImageSets" / "Segmentation" / f"{chosen.split}.txt").read_text().split()
    result = {"environment": measure.environment()}
    if chosen.images:
        names = lines[: chosen.images]
        scenes = [_crop(_scene(chosen.root, name, seed), seed % 2) for seed, name in enumerate(names)]
        result["agreement"] = {setting: _agreement(scenes, names, setting) for setting in SETTINGS}
    if chosen.timed:
        result["seconds"] = {
            str(longer or "as they are"): _timing(chosen, lines[: chosen.timed], longer)
            for longer in (None, 500)
        }
    measure.write_json(result, chosen.json)


def _scene(root, name, seed, longer=None):
    """A picture uint8 [H, W, 3] and probabilities float32 [H, W, C] of the classes of its mask, and background."""
    image = Image.open(root / "JPEGImages" / f"{name}.jpg").convert("RGB")
    mask = Image.open(root / "SegmentationClassAug" / f"{name}.png")
    if longer:
        size = [round(side * longer / max(image.size)) for side in image.size]
        image, mask = (
            image.resize(size, Image.Resampling.BICUBIC),
            mask.resize(size, Image.Resampling.NEAREST),
        )
    mask = np.array(mask)
    rng = np.random.default_rng(seed)
    shares = []
    for label in sorted({0, *np.unique(mask)} - {255}):
        share = _blurred((mask == label) * 255.0, 8) / 255
        noise = _blurred(rng.normal(128, 64, mask.shape).clip(0, 255), 6) - 128
        shares.append(np.log(share + 0.1) + 0.3 * noise)
    powers = np.exp(np.stack(shares, axis=-1))
    return np.array(image), (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)


def _blurred(values, radius):
    return np.array(
        Image.fromarray(values.astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius)), np.float64
    )


def _crop(scene, rim):
    return [np.ascontiguousarray(a[: a.shape[0] - rim, : a.shape[1] - rim]) for a in scene]


def _agreement(scenes, names, setting):
    slots = max(probs.shape[2] for _, probs in scenes)
    canvas = [max(image.shape[i] for image, _ in scenes) for i in (0, 1)]
    canvas = [-(-side // _CANVAS_STEP) * _CANVAS_STEP for side in canvas]
    function = jax.jit(lambda i, p, s: dense_crf_batch(i, p, s, slots=slots, settings=setting))
    rows = []
    for image, probs in scenes:
        height, width, classes = probs.shape
        images, padded = np.zeros((1, *canvas, 3), np.uint8), np.zeros((1, *canvas, slots), np.float32)
        images[0, :height, :width], padded[0, :height, :width, :classes] = image, probs
        ours = np.asarray(function(images, padded, np.array([[height, width]]))[0])[
            0, :height, :width, :classes
        ]
        theirs = by_pydensecrf(image, probs, SETTINGS[setting])
        difference = np.abs(ours - theirs)
        same = (ours.argmax(axis=-1) == theirs.argmax(axis=-1)).mean()
        rows.append((difference.mean(), difference.max(), same, height * width % 4 == 0))
    whole = [row for row in rows if row[3]]
    worst = int(np.argmax([row[1] for row in rows]))
    return {
        "images": len(rows),
        "images_of_whole_fours": len(whole),
        "mean_difference": float(np.mean([row[0] for row in rows])),
        "max_difference": float(rows[worst][1]),
        "max_difference_of_whole_fours": float(max((row[1] for row in whole), default=0)),
        "argmax_agreement": float(np.mean([row[2] for row in rows])),
        "worst_image": names[worst],
    }


def _timing(chosen, names, longer):
    """Seconds of all named pictures, one after the other, in turns."""
    scenes = [_scene(chosen.root, name, seed, longer) for seed, name in enumerate(names)]
    for scene in scenes:
        dense_crf(*scene)

    def ours():
        begin = time.perf_counter()
        for image, probs in scenes:
            dense_crf(image, probs, "afa")
        return time.perf_counter() - begin

    def theirs():
        begin = time.perf_counter()
        for image, probs in scenes:
            by_pydensecrf(image, probs, SETTINGS["afa"])
        return time.perf_counter() - begin

    seconds = measure.interleave({"ours": ours, "pydensecrf": theirs}, chosen.repeats)
    result = {name: measure.summary(values) for name, values in seconds.items()}
    result["images"] = len(scenes)
    result["images_per_second"] = {name: len(scenes) / np.median(values) for name, values in seconds.items()}
    result["ratio"] = float(np.median(np.divide(seconds["pydensecrf"], seconds["ours"])))
    return result


if __name__ == "__main__":
    main()
