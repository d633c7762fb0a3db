"""Adds SBD's masks to a VOC 2012 folder: SegmentationClassAug and the list train_aug.txt, the usual training set.

    python -m rml_jax.data.preparation.sbd VOC2012 benchmark_RELEASE

VOC2012 is the folder in VOC's archive (VOCdevkit/VOC2012), benchmark_RELEASE the one in SBD's (`benchmark.tgz`, with
dataset/cls/*.mat). The list is VOC's train and SBD's train and val without VOC's val: 10,582 images. VOC's own masks
are taken where there are both. Borders stay as they are: VOC's masks have 255 around objects, SBD's have none. Can be
stopped and started again: masks that are there are kept.
"""

import argparse
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import loadmat

from rml_jax.data.images import read_image
from rml_jax.data.masks import check_same_size, decode_mask
from rml_jax.data.sources.voc import CLASS_NAMES, IMAGE_FOLDER, MASK_FOLDER, SPLIT_FOLDER
from rml_jax.data.tags import read_list
from rml_jax.utils.errors import UserError
from rml_jax.utils.files import atomic_write
from rml_jax.utils.progress import Progress

OFFICIAL_COUNTS = {"train": 1464, "train_aug": 10582, "val": 1449}
_VALUES = tuple(range(1, 21))


def add_sbd(voc, sbd, max_bad=0.01):
    """Writes VOC/SegmentationClassAug/*.png and VOC/ImageSets/Segmentation/train_aug.txt.

    Every image and mask is decoded. Those that can't be are left out of the list.

    Args:
      voc: pathlib.Path of VOC2012.
      sbd: pathlib.Path of benchmark_RELEASE, or of its folder dataset.
      max_bad: share of the images that may be left out.

    Returns:
      Lines of text: the counts beside the official ones, and what was left out and why.

    Raises:
      UserError: if a list is missing, the disk is full, or more than `max_bad` of the images are bad (the list is not
        written then).
    """
    sbd = sbd / "dataset" if (sbd / "dataset").is_dir() else sbd
    train, val = (read_list(voc / SPLIT_FOLDER / f"{split}.txt") for split in ("train", "val"))
    extra = (*read_list(sbd / "train.txt"), *read_list(sbd / "val.txt"))
    wanted = usual_list(train, extra, val)
    bad, counts = {}, np.zeros(21, np.int64)
    progress = Progress("masks", len(wanted) + len(val), "images")
    try:
        (voc / MASK_FOLDER).mkdir(exist_ok=True)
        for done, name in enumerate([*wanted, *val], 1):
            try:
                mask = _add_mask(voc, sbd, name)
                counts[np.setdiff1d(mask, [255])] += 1
            except UserError as error:
                bad[name] = str(error)
            progress.update(done)
        if len(bad) > max_bad * (len(wanted) + len(val)):
            raise UserError(
                f"{len(bad)} of {len(wanted) + len(val)} images are bad, such as {min(bad.values())}"
            )
        good = [name for name in wanted if name not in bad]
        atomic_write(voc / SPLIT_FOLDER / "train_aug.txt", "\n".join(good) + "\n")
    except OSError as error:
        raise UserError(f"{error.filename or voc}: {error.strerror}, expected room to write masks") from error
    found = {"train": len(train), "train_aug": len(good), "val": len(val)}
    lines = [
        f"{split}: {number} images (officially {OFFICIAL_COUNTS[split]})" for split, number in found.items()
    ]
    lines.append(f"images per class 1 to 20: {', '.join(map(str, counts[1:]))}")
    return lines + [f"left out: {reason}" for reason in bad.values()]


def _add_mask(voc, sbd, name):
    """Makes sure that an image's mask is in SegmentationClassAug and sound. Returns the mask."""
    target, own = voc / MASK_FOLDER / f"{name}.png", voc / "SegmentationClass" / f"{name}.png"
    if target.exists():
        data = target.read_bytes()
    elif own.exists():
        data = own.read_bytes()
    else:
        data = _png_of_mat(sbd / "cls" / f"{name}.mat")
    mask = decode_mask(data, target, _VALUES)
    path = voc / IMAGE_FOLDER / f"{name}.jpg"
    check_same_size(mask, read_image(path), target)
    if not target.exists():
        atomic_write(target, data)
    return mask


def usual_list(train, extra, val):
    """The ids of the usual training set, in alphabetical order: VOC's train and all of SBD's, without VOC's val."""
    return sorted({*train, *extra} - {*val})


def decode_sbd_mask(data, name):
    """The class mask in one of SBD's .mat files.

    Args:
      data: the file's bytes.
      name: what errors call it.

    Returns:
      uint8 [H, W], 0 background, 1..20 VOC's classes; SBD marks no borders.

    Raises:
      UserError: if it is no such file.
    """
    try:
        mask = np.asarray(loadmat(io.BytesIO(data), simplify_cells=True)["GTcls"]["Segmentation"])
        if mask.ndim != 2 or mask.max() > len(CLASS_NAMES):
            raise ValueError(f"found numbers {mask.shape} up to {mask.max()}")
        return mask.astype(np.uint8)
    # scipy has no common exception for a broken file.
    except Exception as error:
        raise UserError(f"{name}: {type(error).__name__}: {error}, expected SBD's mask") from error


def _png_of_mat(path):
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}, expected SBD's mask") from error
    file = io.BytesIO()
    Image.fromarray(decode_sbd_mask(data, path)).save(file, "PNG")
    return file.getvalue()


def main():
    parser = argparse.ArgumentParser("python -m rml_jax.data.preparation.sbd")
    parser.add_argument("voc", type=Path, help="VOC2012")
    parser.add_argument("sbd", type=Path, help="benchmark_RELEASE")
    chosen = parser.parse_args()
    try:
        print("\n".join(add_sbd(chosen.voc, chosen.sbd)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
