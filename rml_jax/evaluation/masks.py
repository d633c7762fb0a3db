"""Folders of masks: PASCAL VOC's palette PNGs, one per image, named by its id, which may hold folders."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from rml_jax import visualize
from rml_jax.data.masks import read_mask
from rml_jax.labels import IGNORE
from rml_jax.utils.errors import UserError
from rml_jax.utils.files import write_file


def voc_folder(root, split):
    """Returns where VOC's evaluation server looks for the masks of a split, in an archive of what is under `root`."""
    return Path(root, "results", "VOC2012", "Segmentation", f"comp6_{split}_cls")


def file_numbers(mask_values):
    """Returns the number in mask files for each of ours, 0 background, 1..C.

    Args:
      mask_values: the number of each class in the files; () if they are 1..C.

    Returns:
      uint8 [256].
    """
    numbers = np.arange(256, dtype=np.uint8)
    numbers[1 : len(mask_values) + 1] = mask_values
    return numbers


def palette_png(mask):
    """Encodes a mask as a palette PNG, uint8 [H, W], in VOC's colours; returns its bytes."""
    image = Image.fromarray(mask, mode="P")
    image.putpalette(visualize.palette().ravel().tolist())
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


class MaskWriter:
    """Saves predicted masks below a folder, ROOT/PROTOCOL/STAGE/results/VOC2012/Segmentation/comp6_SPLIT_cls/ID.png.

    Args:
      root: pathlib.Path.
      split: name of the split.
      mask_values: the number of each class in mask files; () numbers them 1..C.
    """

    def __init__(self, root, split, mask_values):
        self._root, self._split = root, split
        self._numbers = file_numbers(mask_values)

    def __call__(self, protocol, stage, image_id, mask):
        """Saves one mask, uint8 [H, W], 0 background, 1..C classes."""
        folder = voc_folder(self._root / protocol / stage, self._split)
        write_file(folder / f"{image_id}.png", palette_png(self._numbers[mask]))


class MaskFolder:
    """Reads predicted masks made by any tool: FOLDER/ID.png, palette or grey, numbered as the data set's own masks.

    Args:
      folder: the folder.
      mask_values: the number of each class in the files; () if they are 1..C.
      num_classes: C.
      ignore: see `rml_jax.data.masks.decode_mask`.

    Raises:
      UserError: if there is no such folder.
    """

    def __init__(self, folder, mask_values, num_classes, ignore=IGNORE):
        self._folder, self._ignore = Path(folder), ignore
        self._values = tuple(mask_values) or tuple(range(1, num_classes + 1))
        if not self._folder.is_dir():
            raise UserError(
                f"--masks={folder}: no such folder, expected one that holds ID.png for every image"
            )

    def read(self, image_id, size):
        """Reads one mask.

        Args:
          image_id: the image's id.
          size: (height, width) of its annotation.

        Returns:
          uint8 [H, W], 0 background, 1..C classes.

        Raises:
          UserError: for a mask that is missing, can't be read, holds colours, has other numbers, leaves pixels
            without a class (255), or is of another size.
        """
        path = self._folder / f"{image_id}.png"
        if not path.is_file():
            raise UserError(f"{path}: no such file, expected a mask for every image of the split")
        mask = read_mask(path, self._values, self._ignore)
        if mask.shape != tuple(size):
            found, expected = (f"{width}x{height}" for height, width in (mask.shape, size))
            raise UserError(
                f"{path}: found a mask of {found} pixels, expected {expected} like its annotation"
            )
        if (mask == IGNORE).any():
            raise UserError(
                f"{path}: found {self._ignore} (ignore), expected a class or 0 (background) for every pixel"
            )
        return mask
