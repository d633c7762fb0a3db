"""Arranges two public data sets of surface defects in PASCAL VOC's folder layout.

    git clone https://github.com/DHW-Master/NEU_Seg
    python -m experiments.defect_data neu_seg NEU_Seg --out=data/neu_seg
    git clone https://github.com/abin24/Magnetic-tile-defect-datasets.
    python -m experiments.defect_data magnetic_tiles Magnetic-tile-defect-datasets. --out=data/magnetic_tiles

OUT has JPEGImages, SegmentationClass, ImageSets/Segmentation with the lists train.txt and test.txt, classes.txt, and
tags.csv, the tags of the training images. It is for `configs/neu_seg.py` and `configs/magnetic_tiles.py`. Tags are
the classes in the masks. Neither repository states a licence (November 2026).
"""

import argparse
import hashlib
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from rml_jax.commands import cli
from rml_jax.utils.errors import UserError
from rml_jax.utils.files import atomic_write
from rml_jax.utils.progress import Progress

CLASSES = {
    "neu_seg": ("inclusion", "patches", "scratches"),
    "magnetic_tiles": ("blowhole", "break", "crack", "fray", "uneven"),
}
"""Name of a data set -> its classes, in the order of the numbers in its masks, from 1."""

# Of the magnetic tiles, which come without a division.
TEST_SHARE = 0.2


class Item(NamedTuple):
    """One image: its new id, its files, and the number of its class where the mask is binary, else 0."""

    id: str
    image: Path
    mask: Path
    binary_class: int
    is_test: bool


@cli.command
def main(arguments=None):
    parser = argparse.ArgumentParser(
        "python -m experiments.defect_data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=sorted(CLASSES))
    parser.add_argument("root", type=Path, help="the clone")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    chosen = parser.parse_args(arguments)
    items = {"neu_seg": neu_seg_items, "magnetic_tiles": magnetic_tile_items}[chosen.name](chosen.root)
    arrange(items, CLASSES[chosen.name], chosen.out)


def neu_seg_items(root):
    """Finds the images of NEU-Seg. Training and test images share file names, so ids begin with the part.

    Args:
      root: pathlib.Path of the clone, with images/{training,test} and annotations/{training,test}.

    Returns:
      List of Item.
    """
    return [
        Item(f"{part}_{path.stem}", path, root / "annotations" / part / f"{path.stem}.png", 0, part == "test")
        for part in ("training", "test")
        for path in sorted(root.glob(f"images/{part}/*.jpg"))
    ]


def magnetic_tile_items(root):
    """Finds the images of the magnetic tiles and draws a fifth of them, by the hash of their names, for testing.

    Args:
      root: pathlib.Path of the clone, with MT_Free and MT_CLASS folders. A mask lies beside its image.

    Returns:
      List of Item.
    """
    numbers = {f"MT_{name.capitalize()}": n for n, name in enumerate(CLASSES["magnetic_tiles"], 1)}
    return [
        Item(path.stem, path, path.with_suffix(".png"), number, _fraction(path.stem) < TEST_SHARE)
        for folder, number in ({"MT_Free": 0} | numbers).items()
        for path in sorted(root.glob(f"{folder}/Imgs/*.jpg"))
    ]


def arrange(items, classes, out):
    """Writes images and masks in VOC's layout.

    Args:
      items: list of Item.
      classes: names of the classes 1..C.
      out: pathlib.Path of the folder to write.

    Raises:
      UserError: if there are no images or `out` exists.
    """
    if not items:
        raise UserError("found no images, expected a clone of the data set's repository")
    if out.exists():
        raise UserError(f"{out} exists, expected a new folder")
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (partial / folder).mkdir(parents=True)
    progress, tags = Progress("arrange", len(items), "images"), ["image,tags"]
    for done, item in enumerate(items, 1):
        shutil.copyfile(item.image, partial / "JPEGImages" / f"{item.id}.jpg")
        mask = np.asarray(Image.open(item.mask))
        if item.binary_class:
            # The edges of these masks are smoothed.
            mask = (mask > 127).astype(np.uint8) * item.binary_class
        Image.fromarray(mask.astype(np.uint8)).save(partial / "SegmentationClass" / f"{item.id}.png")
        if not item.is_test:
            tags.append(
                f"{item.id}.jpg,{'|'.join(classes[number - 1] for number in np.unique(mask) if number)}"
            )
        progress.update(done)
    for part, is_test in (("train", False), ("test", True)):
        names = "".join(f"{item.id}\n" for item in items if item.is_test == is_test)
        atomic_write(partial / "ImageSets" / "Segmentation" / f"{part}.txt", names)
    atomic_write(partial / "tags.csv", "\n".join(tags) + "\n")
    atomic_write(partial / "classes.txt", "".join(f"{name}\n" for name in classes))
    partial.rename(out)
    print(f"{out}: {len(items)} images, {sum(item.is_test for item in items)} of them for testing")


def _fraction(name):
    """Returns a number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) / 2**32


if __name__ == "__main__":
    main()
