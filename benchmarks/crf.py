"""The dense CRF against pydensecrf on photographs: agreement of the marginals, and time including the lattice.

    python -m benchmarks.crf --root VOC2012 [--split val] [--images 60] [--timed 6] [--json FILE]

`--root` is a folder in VOC's layout: JPEGImages, SegmentationClassAug and ImageSets/Segmentation. Probabilities are
the masks' classes, blurred and mixed with smooth noise. For agreement, a row and a column of every other image are
removed, so that its number of pixels is rarely a multiple of 4. For time, images are used at their own size and
enlarged to 500 pixels, VOC's size; both implementations take the same arrays and return marginals on the host.
"""

from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageFilter

from benchmarks import measure
from rml_jax.ops.crf import SETTINGS, dense_crf, dense_crf_batch
from tests.references.pydensecrf import by_pydensecrf

_CANVAS_STEP = 64


def main():
    chosen, result = measure.start(required=["root"], root=Path, split="val", images=60, timed=6, repeats=5)
    lines = (chosen.root / "ImageSets" / "Segmentation" / f"{chosen.split}.txt").read_text().split()
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
    """Returns an image uint8 [H, W, 3] and probabilities float32 [H, W, C] of background and its mask's classes."""
    image = Image.open(root / "JPEGImages" / f"{name}.jpg").convert("RGB")
    mask = Image.open(root / "SegmentationClassAug" / f"{name}.png")
    if longer:
        size = [round(side * longer / max(image.size)) for side in image.size]
        image = image.resize(size, Image.Resampling.BICUBIC)
        mask = mask.resize(size, Image.Resampling.NEAREST)
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
    blurred = Image.fromarray(values.astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.array(blurred, np.float64)


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
        marginals, _ = function(images, padded, np.array([[height, width]]))
        ours = np.asarray(marginals)[0, :height, :width, :classes]
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
    """Times all named images, one after the other; ours and pydensecrf alternate."""
    scenes = [_scene(chosen.root, name, seed, longer) for seed, name in enumerate(names)]
    for scene in scenes:
        dense_crf(*scene, "afa")
    functions = {
        "ours": lambda: [dense_crf(image, probs, "afa") for image, probs in scenes],
        "pydensecrf": lambda: [by_pydensecrf(image, probs, SETTINGS["afa"]) for image, probs in scenes],
    }
    seconds = measure.interleave(functions, chosen.repeats)
    wall = {name: np.array(values)[:, 0] for name, values in seconds.items()}
    return {
        **{name: measure.summary(values) for name, values in seconds.items()},
        "images": len(scenes),
        "images_per_second": {name: len(scenes) / np.median(values) for name, values in wall.items()},
        "ratio": float(np.median(wall["pydensecrf"] / wall["ours"])),
    }


if __name__ == "__main__":
    main()
