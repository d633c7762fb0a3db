"""What the sub-folders of an image folder stand for: tags, parts of the data set, or neither.

PHOTOS/cat/1.jpg         the tag cat
PHOTOS/train/cat/1.jpg   the tag cat, training part; PHOTOS/val is the validation part, PHOTOS/test is not used
PHOTOS/masks/1.png       no tag
"""

import collections
import dataclasses
import os
from pathlib import Path, PurePosixPath

from PIL import Image

from rml_jax.data.tags import tag_key

_PARTS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
# Written by macOS, Synology, Jupyter and Windows beside files of users.
_SYSTEM_FOLDERS = {
    "__macosx",
    "@eadir",
    ".ipynb_checkpoints",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "__pycache__",
}
_MASK_FOLDERS = {
    "masks",
    "annotations",
    "segmentationclass",
    "segmentationclassaug",
    "segmentationobject",
    "ground_truth",
    "groundtruth",
}
# May be the name of a class as well: what is in the folder decides.
_PERHAPS_MASK_FOLDERS = {"mask", "annotation", "label", "labels", "segmentation", "segmentations", "gt"}
_CHECKED_IMAGES = 8


@dataclasses.dataclass(frozen=True)
class SubFolders:
    """The meaning of each image's sub-folders.

    Attributes:
      tags: dict from image id to the folder that names its tag; images without one and of "test" are not in it.
      parts: dict from image id to "train", "val" or "test"; empty where there are no folders of parts.
      left_out: dict from a folder that names no tag to its number of images.
    """

    tags: dict[str, str]
    parts: dict[str, str]
    left_out: dict[str, int]


def is_system_path(path):
    """Returns whether a path leads through a folder that an operating system or a tool keeps for itself."""
    return any(part.casefold() in _SYSTEM_FOLDERS for part in Path(path).parts[:-1])


def read_subfolders(root, files, class_names=()):
    """Finds what the sub-folders of an image folder stand for.

    Folders of parts are recognised if all first-level folders are called like one (train, val, test, training, valid,
    validation, testing in any case), one of them for training, and they are more than one or have sub-folders.

    Args:
      root: the image folder.
      files: dict from image id to path below `root`.
      class_names: the classes, if they are known. A folder of such a name always names a tag.

    Returns:
      SubFolders.
    """
    classes = {tag_key(name) for name in class_names}
    parts = _parts([name for name in files if _first(name) not in _MASK_FOLDERS], classes)
    below = {name: name.partition("/")[2] if name in parts else name for name in files}
    tags = {name: rest.split("/")[0] for name, rest in below.items() if "/" in rest}
    suspects = {folder for folder in tags.values() if tag_key(folder) not in classes}
    left_out = {folder for folder in suspects if folder.casefold() in _MASK_FOLDERS}
    left_out |= {
        folder
        for folder in suspects
        if folder.casefold() in _PERHAPS_MASK_FOLDERS and _holds_masks(root, files, tags, folder)
    }
    counts = {folder: list(tags.values()).count(folder) for folder in sorted(left_out)}
    used = {
        name: folder for name, folder in tags.items() if folder not in left_out and parts.get(name) != "test"
    }
    return SubFolders(used, parts, counts)


def notes(parts, left_out):
    """Says what sub-folders were taken for, where they are not all tags."""
    lines = []
    if parts:
        counts = collections.Counter(parts.values())
        others = "; val is drawn from train" if "val" not in counts else ""
        lines.append(
            f"folders of parts: {describe_counts(counts)}{others}{'; test is not used' if 'test' in counts else ''}"
        )
    if left_out:
        lines.append(f"folders that name no tag (images left out): {describe_counts(left_out)}")
    return lines


def describe_counts(counts):
    """Returns counts by name as text."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def _first(name):
    return name.split("/")[0].casefold() if "/" in name else None


def _parts(names, classes):
    nested = [name for name in names if "/" in name]
    folders = {_first(name) for name in nested}
    deep = any(name.count("/") > 1 for name in nested)
    if not folders or not folders <= _PARTS.keys() or not (deep or len(folders) > 1) or folders <= classes:
        return {}
    if "train" not in {_PARTS[folder] for folder in folders}:
        return {}
    return {name: _PARTS[_first(name)] for name in nested}


def _holds_masks(root, files, tags, folder):
    """Whether no image in a folder is in colour, or each is named like an image in another one."""
    own = [name for name in files if tags.get(name) == folder]
    others = {PurePosixPath(name).name for name in files if tags.get(name) != folder}
    if all(PurePosixPath(name).name in others for name in own):
        return True
    return all(_is_colourless(os.path.join(root, files[name])) for name in own[:_CHECKED_IMAGES])


def _is_colourless(path):
    try:
        with Image.open(path) as image:
            return image.mode in ("1", "L", "P") or image.mode.startswith("I")
    except Exception:  # Pillow has no common exception. Reading the image later says what is wrong.
        return False
