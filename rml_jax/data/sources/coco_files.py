"""Where the annotation file and the images of a data set in COCO's format are.

ROOT/annotations/instances_SPLIT.json   COCO, CVAT, datumaro
ROOT/annotations/SPLIT.json
ROOT/SPLIT/_annotations.coco.json       Roboflow

or one file for the whole data set:

ROOT/annotations/instances_default.json CVAT, datumaro
ROOT/_annotations.coco.json             Roboflow
ROOT/annotations.json
ROOT/result.json                        Label Studio
ROOT/labels.json                        FiftyOne

Images are in SPLIT, images/SPLIT (images/default for one file), images, data or ROOT itself.
"""

import os
from pathlib import Path, PurePosixPath

from rml_jax.utils.errors import UserError

_SPLIT_FILES = (
    "annotations/instances_{split}.json",
    "annotations/{split}.json",
    "{split}/_annotations.coco.json",
)
_WHOLE_FILES = (
    "annotations/instances_default.json",
    "_annotations.coco.json",
    "annotations.json",
    "result.json",
    "labels.json",
)
_IMAGE_FOLDERS = ("{split}", "images/{split}", "images", "data", "")


def find_annotations(root, split):
    """Finds the annotation file of a split.

    Args:
      root: the folder of the data.
      split: name of the split.

    Returns:
      pathlib.Path of the file, and whether it is of the whole data set.

    Raises:
      UserError: if there is none.
    """
    for is_whole, names in ((False, _SPLIT_FILES), (True, _WHOLE_FILES)):
        for name in names:
            path = Path(root, name.format(split=split))
            if path.is_file():
                return path, is_whole
    if not Path(root).is_dir():
        raise UserError(f"{root}: no such folder, expected images and annotations in COCO's format")
    files = (path for pattern in ("*.json", "*/*.json") for path in Path(root).glob(pattern))
    found = ", ".join(sorted(path.relative_to(root).as_posix() for path in files)[:8]) or "no .json"
    raise UserError(
        f"{Path(root, _SPLIT_FILES[0].format(split=split))}: no such file, expected COCO's annotation file of "
        f"{split}; found {found} (config.data.train_split, config.data.val_split)"
    )


def find_images(root, split, path, is_whole, names):
    """Finds image files.

    Where a name is not found, its last part is looked for, as exports may name folders of another machine.

    Args:
      root, split: see `find_annotations`.
      path, is_whole: what that returned.
      names: list of file names with forward slashes, as in the file.

    Returns:
      List of paths, str.

    Raises:
      UserError: if one is missing, or two names are the same file.
    """
    split = "default" if is_whole else split
    folders = [os.path.join(root, name.format(split=split)) for name in _IMAGE_FOLDERS]
    paths = [_find(folders, name) for name in names]
    missing = [name for name, found in zip(names, paths, strict=True) if found is None]
    if missing:
        first = next((folder for folder in folders if os.path.isdir(folder)), folders[0])
        raise UserError(
            f"{path}: no image {Path(first, missing[0])} (missing for {len(missing)} of {len(names)} images)"
        )
    seen = {}
    for name, found in zip(names, paths, strict=True):
        if seen.setdefault(found, name) != name:
            raise UserError(f"{path}: found {found} for both {seen[found]!r} and {name!r}, expected one each")
    return paths


def _find(folders, name):
    for part in dict.fromkeys((name, PurePosixPath(name).name)):
        for folder in folders:
            path = os.path.join(folder, part)
            if os.path.isfile(path):
                return path
    return None
