"""Measures where a run's CAMs lie, and what its masks lose to the frame, the background's score and PAR.

    python -m experiments.cam_evidence --workdir=DIR [--split=val] [--images=500] [--frame=32] [--json=FILE]

Given tags. The frame is the image's border of `--frame` pixels, by default two cells of the network's last grid. For
each class, over the images with its tag: the mean CAM in the frame and inside it, and the frame's share of the CAM's
sum, of the class's annotated pixels, and of the area. For the chains cam and par, the mIoU with

    fixed           the run's own background score,
    best            the best single score of the grid on the same images,
    best_each       the best score for each image, which needs its mask: an upper bound for any choice of scores,
    best_inside     the best single score, where pixels in the frame are not counted,
    best_one_tag    the best single score on the images with one tag alone,
    contrast_W      each image's score chosen by region contrast of weight W, near the best one of the grid,
    unaided         the best single score by the mean contrast of the chain par, which needs no mask,
    unaided_W       the same with scores of their own near that for the images.
"""

import argparse
from pathlib import Path

import jax
import numpy as np

from benchmarks import measure
from rml_jax.checkpoint import read_params
from rml_jax.config import default_config, load_config
from rml_jax.data.sources import make_source
from rml_jax.evaluation.metrics import mean_iou
from rml_jax.evaluation.sweep import CONTRAST_STAGE, contrast_batch, draw_images, scores_near, sweep_batch
from rml_jax.labels import IGNORE
from rml_jax.models import build
from rml_jax.ops.contrast import choose_score
from rml_jax.stages.refine import make_sweep
from rml_jax.stages.registry import background_key
from rml_jax.stages.runner import StageRunner
from rml_jax.utils.compilation_cache import use_compilation_cache
from rml_jax.utils.progress import Progress

CHAINS = ("cam", "par")
GRID = np.array(default_config().eval.sweep.grid)
WEIGHTS = (5.0, 10.0, 20.0)


def main():
    parser = argparse.ArgumentParser("python -m experiments.cam_evidence")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--checkpoint", default="newest")
    parser.add_argument("--split", help="the run's data.val_split by default")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument(
        "--frame", type=int, default=32, help="in pixels, less than half of every image's side"
    )
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    use_compilation_cache()
    environment = measure.environment()
    config = load_config(chosen.workdir / "config.json")
    config.eval.stages, config.eval.region_contrast = CHAINS, 0.0
    graphdef, abstract = build.build_graph(config)
    step, params = read_params(chosen.workdir, abstract, chosen.checkpoint, config.checkpoint.best_metric)
    split = chosen.split or config.data.val_split
    source = make_source(config.data, split, with_masks=True)
    indices = draw_images(source, chosen.images, config.data.seed)
    maps, scores = measure_images(config, graphdef, params, source, indices, chosen.frame)
    result = {"environment": environment, "dataset": config.data.name, "split": split, "step": step}
    result |= {"images": len(indices), "frame": chosen.frame, "classes": maps, "miou": scores}
    print(table(result))
    if chosen.json:
        measure.write_json(result, chosen.json)


def measure_images(config, graphdef, params, source, indices, frame):
    """Measures the CAMs and the masks of some images.

    Args:
      config: ConfigDict of the run, with the chains in `eval.stages`.
      graphdef, params: the split `RML`.
      source: random-access source with masks.
      indices: of the images.
      frame: width of the frame in pixels.

    Returns:
      Dict from each class to `class_means`, and dict from each chain to `chain_scores`.
    """
    names, progress = tuple(config.data.class_names), Progress("evidence", len(indices), "images")
    runner = StageRunner(config, graphdef)
    sweep = runner.shard_map(make_sweep(runner.stages, len(names), with_contrast=True), 0, 6)
    params, grouper = runner.replicate(params), runner.grouper(config.eval.batch_size * runner.devices)
    sums, matrices, inside, contrasts, one_tag = [], [], [], [], []
    for index in (*indices, None):
        for batch in grouper.rest() if index is None else grouper.add(index, source[index]):
            maps, _ = runner.maps(params, batch)
            maps = jax.device_get(maps)
            tags = {"given": np.stack([item["tags"] for item in batch.items]) > 0}
            whole = sweep_batch(runner, sweep, batch, maps, tags, np.float32(GRID))
            for number, (_, item, size) in enumerate(batch.entries):
                cams = maps["cams"][number, : size[0], : size[1]] * (item["tags"] > 0)
                sums.append(frame_sums(cams, item["mask"], frame))
                one_tag.append((item["tags"] > 0).sum() == 1)
                item["mask"] = without_frame(item["mask"], frame)
            cut = sweep_batch(runner, sweep, batch, maps, tags, np.float32(GRID))
            matrices += [of_image["given"] for of_image in whole]
            inside += [of_image["given"] for of_image in cut]
            found = contrast_batch(runner, sweep, batch, maps, tags, np.float32(GRID), CHAINS)
            contrasts += [of_image["given"] for of_image in found]
            progress.update(len(sums))
    background = config.eval.background
    matrices, inside, contrasts = (
        {chain: np.stack([values[chain] for values in of_images]) for chain in CHAINS}
        for of_images in (matrices, inside, contrasts)
    )
    unaided = contrasts[CONTRAST_STAGE].mean(axis=0).argmax()
    scores = {
        chain: chain_scores(
            matrices[chain],
            inside[chain],
            contrasts[chain],
            np.array(one_tag),
            unaided,
            background[background_key(chain, background)],
        )
        for chain in CHAINS
    }
    return dict(zip(names, class_means(np.sum(sums, axis=0)), strict=True)), scores


def in_frame(size, width):
    """Returns which pixels of an image lie at most `width` pixels from its edge, bool [H, W]."""
    frame = np.ones(size, bool)
    frame[width : size[0] - width, width : size[1] - width] = False
    return frame


def without_frame(mask, width):
    """Returns a mask whose pixels in the frame are not scored."""
    return np.where(in_frame(mask.shape, width), np.uint8(IGNORE), mask)


def frame_sums(cams, mask, width):
    """Sums an image's CAMs and annotated pixels in the frame and inside it.

    Args:
      cams: float [H, W, C], 0 for classes that are not given.
      mask: uint8 [H', W'], 0..C.
      width: of the frame, in pixels of either.

    Returns:
      float64 [2, 3, C]: in the frame and inside it, the CAM's sum, its number of pixels, and the annotated pixels.
    """
    classes = np.arange(1, 1 + cams.shape[-1])
    given = cams.any(axis=(0, 1))
    frames = in_frame(cams.shape[:2], width), in_frame(mask.shape, width)
    return np.stack(
        [
            [
                cams[of_cam].sum(axis=0, dtype=np.float64),
                of_cam.sum() * given,
                (mask[of_mask][:, None] == classes).sum(axis=0),
            ]
            for of_cam, of_mask in (frames, [~frame for frame in frames])
        ]
    )


def class_means(sums):
    """Computes the measures of each class.

    Args:
      sums: float64 [2, 3, C], of `frame_sums` over all images.

    Returns:
      List of a dict for each class.
    """
    cams, pixels, annotated = np.moveaxis(sums, 1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        rows = {
            "cam_in_frame": cams[0] / pixels[0],
            "cam_inside": cams[1] / pixels[1],
            "frame_of_cam": cams[0] / cams.sum(axis=0),
            "frame_of_mask": annotated[0] / annotated.sum(axis=0),
            "frame_of_area": pixels[0] / pixels.sum(axis=0),
        }
    return [
        {name: round(float(values[c]), 4) for name, values in rows.items()} for c in range(sums.shape[-1])
    ]


def chain_scores(matrices, inside, contrasts, one_tag, unaided, fixed):
    """Computes a chain's mIoU for several choices of the background's score.

    Args:
      matrices: int64 [N, T, K, K], the images' confusion matrices at each score of GRID.
      inside: the same, where pixels in the frame are not counted.
      contrasts: float [N, T], of the masks.
      one_tag: bool [N], whether an image has one tag.
      unaided: place in GRID of the score that was chosen without masks.
      fixed: the run's own score; the nearest of GRID is used.

    Returns:
      Dict of mIoU in percent.
    """
    nearest = np.abs(GRID - fixed).argmin()
    single, cut = ([mean_iou(m) for m in of_images.sum(axis=0)] for of_images in (matrices, inside))
    # An image whose pixels are all ignored adds nothing at any score.
    chosen = [np.argmax([mean_iou(m) if m.any() else 0 for m in of_image]) for of_image in matrices]
    each = sum(of_image[best] for of_image, best in zip(matrices, chosen, strict=True))
    near = {weight: by_contrast(matrices, contrasts, weight) for weight in WEIGHTS}
    values = {
        "fixed": single[nearest],
        "best": max(single),
        "best_each": mean_iou(each),
        "best_inside": max(cut),
        "best_one_tag": max(map(mean_iou, matrices[one_tag].sum(axis=0))) if one_tag.any() else np.nan,
        **{f"contrast_{weight:g}": max(scores) for weight, scores in near.items()},
        "unaided": single[unaided],
        **{f"unaided_{weight:g}": scores[unaided] for weight, scores in near.items()},
    }
    scores = {name: round(100 * float(value), 2) for name, value in values.items()}
    places = {
        "fixed": nearest,
        "best": np.argmax(single),
        **{f"contrast_{weight:g}": np.argmax(of_weight) for weight, of_weight in near.items()},
        "unaided": unaided,
    }
    return scores | {f"{name}_score": float(GRID[place]) for name, place in places.items()}


def by_contrast(matrices, contrasts, weight):
    """Computes the mIoU near each score of GRID with each image's score chosen by contrast, list of T."""
    near, places = scores_near(GRID)
    _, best = choose_score(contrasts[:, places], near, GRID, weight)  # [N, T]
    chosen = np.take_along_axis(places, np.asarray(best).T, axis=1)  # [T, N]
    return [mean_iou(matrices[np.arange(len(matrices)), of_image].sum(axis=0)) for of_image in chosen]


def table(result):
    """Returns the result as two tables of Markdown."""
    parts = []
    for first, rows in (("class", result["classes"]), ("chain", result["miou"])):
        columns = list(next(iter(rows.values())))
        parts.append(" | ".join(["", first, *columns, ""]).strip())
        parts.append("|" + "---|" * (1 + len(columns)))
        parts += [
            " | ".join(["", name, *map(str, row.values()), ""]).strip() for name, row in rows.items()
        ] + [""]
    return "\n".join(parts)


if __name__ == "__main__":
    main()
