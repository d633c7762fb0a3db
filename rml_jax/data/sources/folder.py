"""A folder of images with a tag file, or with one sub-folder per tag.

PHOTOS/a.jpg                        PHOTOS/cat/1.jpg
PHOTOS/trip/b.png                   PHOTOS/dog/2.jpg
tags.csv (`rml_jax.data.tags`)

MASKS/a.png, MASKS/trip/b.png       optional, for scoring only; class numbers, 255 = ignore
"""

import collections
import dataclasses
import hashlib
import os
import sys
import unicodedata
from pathlib import Path

import numpy as np

from rml_jax.data.images import PLUGIN_PACKAGES, image_suffixes, read_image
from rml_jax.data.masks import check_same_size, read_label_map, read_mask
from rml_jax.data.sources.duplicates import draw_groups, first_copies
from rml_jax.data.sources.layout import DataLayout
from rml_jax.data.sources.subfolders import is_system_path, notes, read_subfolders
from rml_jax.data.tags import (
    check_classes,
    class_list,
    image_id,
    match_images,
    read_list,
    read_tag_names,
    read_tags,
    tag_key,
)
from rml_jax.labels import IGNORE
from rml_jax.utils.errors import UserError
from rml_jax.utils.files import printable, walk


@dataclasses.dataclass(frozen=True)
class Photo:
    """One photograph of a folder.

    Attributes:
      id: its path below the folder without suffix.
      image: path of the file.
      mask: path of its mask, which need not exist; None without a folder of masks.
      numbers: places of its tags in the class list, ascending.
    """

    id: str
    image: Path
    mask: Path | None
    numbers: tuple[int, ...]


class PhotoFolder:
    """Random-access source over the training or the validation part of a folder of photographs.

    `source[i]` is a dict with `id` (str, the path below the folder without suffix), `image` (uint8 [H, W, 3], upright
    as a viewer shows it), `tags` (float32 [C]) and, only where `with_masks` is set, `mask` (uint8 [H, W], 0
    background, 1..C classes, 255 ignore).

    The constructor reads names and tags; `source[i]` decodes images. With a tag file, images that it doesn't list are
    left out (`untagged` counts them). Without one, copies of an image under one name in several sub-folders are one
    item with several tags, under the id of the first. Identical images are never in both parts. Hidden files are
    ignored; files without a suffix of `rml_jax.data.images.image_suffixes` are left out (`left_out` counts them by
    suffix). The format of an image is read from its content, not its suffix.

    Args:
      root: the folder of photographs; sub-folders included, links followed once.
      is_training: whether the source is the training part.
      class_names: C names; () takes those that occur in the whole folder's tags, in alphabetical order.
      tags_file: CSV or JSON Lines; "" makes the name of each first-level sub-folder the tag of its images.
      mask_folder: folder of masks, "" for none. Left out of the photographs if it lies below `root`.
      mask_values: the number of each class in the masks, 1..255; () stands for 1..C.
      mask_ignore: the number of pixels that aren't annotated; `rml_jax.data.masks.NO_IGNORE` for none.
      val_list: text file that names the validation images, one a line; "" draws them.
      val_fraction: share of the images that is drawn for validation; at least one image if it isn't 0.
      seed: of the draw.
      with_masks: whether items carry their masks. Every image of the part then needs one.

    Raises:
      UserError: by the constructor for what is missing, empty, named twice or malformed; by `source[i]` for a file
        that can't be decoded as an image or a mask (`rml_jax.data.images`).
    """

    def __init__(
        self,
        root,
        is_training,
        class_names=(),
        *,
        tags_file="",
        mask_folder="",
        mask_values=(),
        mask_ignore=IGNORE,
        val_list="",
        val_fraction=0.1,
        seed=0,
        with_masks=False,
    ):
        self.class_names = tuple(class_names) or folder_classes(root, tags_file, mask_folder)
        self.mask_values = tuple(mask_values) or tuple(range(1, len(self.class_names) + 1))
        self.with_masks = with_masks
        self.mask_ignore = mask_ignore
        check_classes(self.class_names, self.mask_values, mask_ignore)
        self._root, self._masks = str(root), str(mask_folder)
        self._colours = (
            read_label_map([mask_folder, Path(mask_folder).parent], self.class_names) if mask_folder else None
        )
        files = find_images(root, mask_folder)
        folders = read_subfolders(root, files, class_names)
        tags = _tags(files, folders, root, tags_file, self.class_names)
        left_out = {} if tags_file else folders.left_out
        without = [name for name in files if name not in tags and folders.parts.get(name) != "test"]
        self.untagged = len(without) - sum(left_out.values())
        self.left_out = count_left_out(root, mask_folder)
        unread = describe_left_out(self.left_out)
        self.notes = [*notes(folders.parts, left_out), *([unread] if unread else [])]
        first = first_copies({name: Path(root, files[name]) for name in sorted(tags)})
        tags, aliases = (tags, {}) if tags_file else _merge_copies(tags, first, folders.parts)
        self.notes += _copies(len(aliases) - len(tags) if aliases else 0, [first[name] for name in tags])
        chosen = _split(tags, first, aliases, folders.parts, val_list, val_fraction, seed, is_training)
        if not chosen:
            part = "training" if is_training else "validation"
            raise UserError(
                f"{root}: no image is left for {part}, of {len(tags)} with tags, {len(set(map(first.get, tags)))} "
                "of them different (config.data.val_fraction, config.data.val_list)"
            )
        self._files = [(name, files[name], tags[name]) for name in chosen]
        if with_masks:
            self._check_masks()

    def __len__(self):
        return len(self._files)

    def __getitem__(self, index):
        photo = self.photo(index)
        item = {"id": photo.id, "image": read_image(photo.image, upright=True)}
        item["tags"] = np.zeros(len(self.class_names), np.float32)
        item["tags"][list(photo.numbers)] = 1.0
        if self.with_masks:
            item["mask"] = self.read_mask(index)
            check_same_size(item["mask"], item["image"], photo.mask)
        return item

    def item_tags(self):
        """Returns the id of each image and the positions of its tags, ascending."""
        return [(name, numbers) for name, _, numbers in self._files]

    def read_mask(self, index):
        """Returns an item's mask alone, uint8 [H, W]."""
        return read_mask(self.photo(index).mask, self.mask_values, self.mask_ignore, self._colours)

    def photo(self, index):
        """Returns the Photo of an item: its files and tags."""
        name, file, numbers = self._files[index]
        return Photo(name, Path(self._root, file), self._mask_path(name) if self._masks else None, numbers)

    def _mask_path(self, name):
        return Path(self._masks, f"{name}.png")

    def _check_masks(self):
        if not self._masks:
            raise UserError("config.data.masks is empty: expected the folder of masks, which scoring needs")
        missing = [name for name, _, _ in self._files if not self._mask_path(name).is_file()]
        if missing:
            raise UserError(
                f"no mask {self._mask_path(missing[0])} for image {missing[0]!r} "
                f"(missing for {len(missing)} of {len(self._files)} images)"
            )


def folder_classes(root, tags_file="", mask_folder=""):
    """Returns the classes of a folder, sorted: the tags in the tag file, or the sub-folders with images.

    Raises:
      UserError: if there are none, or the folder or the tag file can't be read.
    """
    if tags_file:
        names = class_list(tag for tags, _ in read_tag_names(tags_file).values() for tag in tags)
    else:
        folders = read_subfolders(root, find_images(root, mask_folder))
        names = class_list(folders.tags.values())
    if not names:
        raise UserError(
            f"{tags_file or root}: found no tags, expected a tag file (config.data.tags) with at least one, "
            "or one sub-folder per tag"
        )
    return names


def find_images(root, mask_folder=""):
    """Finds the images below a folder.

    Args:
      root: the folder. Links to folders are followed, each folder is visited once.
      mask_folder: folder to leave out, "" for none.

    Returns:
      Dict from `image_id` to the file's path below the folder, str, in the order of the paths. In ids, bytes of a
      name that are no UTF-8 are written out (`printable`).

    Raises:
      UserError: if the folder or one in it can't be read, has no image, or two images differ in their suffix alone.
    """
    if not root:
        raise UserError("config.data.root is empty: expected the folder of photographs")
    images = {}
    for path in list_images(root, mask_folder):
        name = image_id(printable(Path(path).as_posix()))
        if name in images:
            raise UserError(
                f"{root}: found both {images[name]} and {path}, expected names that differ without suffix"
            )
        images[name] = path
    if not images:
        found = describe_left_out(count_left_out(root, mask_folder)) or "no files"
        raise UserError(
            f"{root}: found no images but {found}, expected files that end in .jpg, .png or the like"
        )
    return images


def list_images(root, *skip):
    """Returns the paths of the image files below a folder, relative to it, str, sorted. Hidden files are ignored.

    Args:
      root: see `find_images`.
      skip: folders to leave out; "" is none.

    Raises:
      UserError: if the folder or one in it can't be read.
    """
    paths = (path for path in _visible_files(root, skip) if _suffix(path) in image_suffixes())
    return sorted(os.path.relpath(path, root) for path in paths)


def count_left_out(root, *skip):
    """Counts the files that `list_images` leaves out, apart from hidden ones and those of systems.

    Returns:
      Counter by suffix, in lower case; "" for files without one.
    """
    suffixes = map(_suffix, _visible_files(root, skip))
    return collections.Counter(suffix for suffix in suffixes if suffix not in image_suffixes())


def _visible_files(root, skip):
    for _, files in walk(root, skip=[os.path.realpath(folder) for folder in skip if folder]):
        for path in files:
            hidden = os.path.basename(path).startswith(".")
            if not hidden and not is_system_path(os.path.relpath(path, root)):
                yield path


def _suffix(path):
    return os.path.splitext(path)[1].lower()


def describe_left_out(others):
    """Returns what `count_left_out` found as text, such as "3 files without an image's suffix (.heic 2, .txt 1)".

    Returns "" for nothing. HEIC and JPEG XL say which package reads them.
    """
    if not others:
        return ""
    counts = ", ".join(f"{suffix or 'no suffix'} {count}" for suffix, count in sorted(others.items()))
    files = "file" if others.total() == 1 else "files"
    hints = [f"{s} needs `pip install {PLUGIN_PACKAGES[s]}`" for s in sorted(others) if s in PLUGIN_PACKAGES]
    return "; ".join([f"{others.total()} {files} without an image's suffix ({counts})", *hints])


def _tags(files, folders, root, tags_file, class_names):
    """Returns a dict from id to class numbers, of the images with tags."""
    if tags_file:
        return match_images(read_tags(tags_file, class_names), files, tags_file, root)
    numbers = {tag_key(name): number for number, name in enumerate(class_names)}
    for folder in folders.tags.values():
        if tag_key(folder) not in numbers:
            raise UserError(
                f"{Path(root, folder)}: found folder {folder!r}, expected one of {', '.join(class_names)}"
            )
    return {name: (numbers[tag_key(folder)],) for name, folder in folders.tags.items()}


def _merge_copies(tags, first, parts):
    """Merges the tags of identical images that have the same path below different class folders of one part.

    Args:
      tags: dict from id to class numbers.
      first: dict from each id to the first one of the same content (`first_copies`).
      parts: dict from id to the part that its first-level folder stands for; empty without such folders.

    Returns:
      As `tags`, without the later copies, and a dict from the id of each copy to the id that it was merged into.
    """
    kept, merged, aliases = {}, {}, {}
    for name in sorted(tags):
        below = name.split("/")[2 if name in parts else 1 :]
        aliases[name] = kept.setdefault((first[name], parts.get(name), *below), name)
        merged.setdefault(aliases[name], set()).update(tags[name])
    return {name: tuple(sorted(numbers)) for name, numbers in merged.items()}, aliases


def _copies(merged, groups):
    """Says how many images are copies. `groups` has the first image of the same content for each that is left."""
    if merged:
        yield f"copies in other class folders, merged into one image with several tags: {merged}"
    if more := len(groups) - len(set(groups)):
        yield f"images that are identical to another one, and stay in one part with it: {more}"


def _split(tags, first, aliases, parts, val_list, val_fraction, seed, is_training):
    """Returns the names of one part, sorted. No two names of different parts have the same `first` copy."""
    names = sorted(name for name in tags if parts.get(name) != "test")
    if not val_list and "val" not in parts.values():
        # By hash rather than by a shuffle: when images are added later, nearly all others stay in their part.
        order = sorted(names, key=lambda name: _hash(f"{seed} {name}"))
        drawn = draw_groups(
            [first[name] for name in order], max(1, round(val_fraction * len(names))) if val_fraction else 0
        )
        return [name for name in names if (first[name] in drawn) != is_training]
    if val_list:
        listed = {image_id(name) for name in read_list(val_list)}
        unknown = sorted(name for name in listed if aliases.get(name, name) not in tags)
        if unknown:
            raise UserError(f"{val_list}: found {unknown[0]!r}, expected names of images with tags")
        validation = {aliases.get(name, name) for name in listed}
    else:
        validation = {name for name in names if parts.get(name) == "val"}
    if not is_training:
        return sorted(validation)
    copied = {first[name] for name in validation}
    training = [name for name in names if name not in validation]
    kept = [name for name in training if first[name] not in copied]
    if len(kept) < len(training):
        print(
            f"{val_list or 'val folder'}: {len(training) - len(kept)} other images are identical to listed ones and "
            "left out of training",
            file=sys.stderr,
        )
    return kept


def _hash(text):
    return hashlib.sha256(unicodedata.normalize("NFC", text).encode()).digest()


def _make(data_config, split, with_masks):
    splits = (data_config.train_split, data_config.val_split)
    if split not in splits:
        raise UserError(f"folder has no split {split!r}: expected one of {', '.join(splits)}")
    return PhotoFolder(
        data_config.root,
        split == data_config.train_split,
        data_config.class_names,
        tags_file=data_config.tags,
        mask_folder=data_config.masks,
        mask_values=data_config.mask_values,
        mask_ignore=data_config.mask_ignore,
        val_list=data_config.val_list,
        val_fraction=data_config.val_fraction,
        seed=data_config.seed,
        with_masks=with_masks,
    )


LAYOUT = DataLayout(
    make=_make,
    find_classes=lambda data_config: folder_classes(data_config.root, data_config.tags, data_config.masks),
    has_masks=lambda data_config, split: bool(data_config.masks),
    licence="The trainer's own photographs: their terms are not known here. **To be filled in before this model is "
    "passed on.**",
)
