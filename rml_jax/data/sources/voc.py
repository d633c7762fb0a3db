"""Images in PASCAL VOC's folder layout, with tags from a tag file or from which classes a mask contains.

    ROOT/JPEGImages/ID.jpg                   or another suffix of `image_suffixes`
    ROOT/SegmentationClassAug/ID.png         palette or grey, one class number per pixel, 255 = ignore
    ROOT/ImageSets/Segmentation/SPLIT.txt    one ID a line, or the paths of an image and its mask

VOC's own `SegmentationClass` holds only VOC's 2,913 masks; `SegmentationClassAug` is the usual name of the
folder with SBD's added to them, 12,031 in all. Without it, masks are read from `SegmentationClass`.
"""

import concurrent.futures
import functools
import os
from pathlib import Path, PurePosixPath

import numpy as np

from rml_jax.data.images import image_suffixes, read_image
from rml_jax.data.masks import check_masks, check_same_size, presence, read_label_map, read_mask
from rml_jax.data.sources.layout import DataLayout
from rml_jax.data.tags import check_classes, image_id, read_list, read_tags
from rml_jax.labels import IGNORE
from rml_jax.utils.errors import UserError
from rml_jax.utils.files import walk
from rml_jax.utils.progress import Progress

IMAGE_FOLDER = "JPEGImages"
MASK_FOLDER = "SegmentationClassAug"
_OWN_MASK_FOLDER = "SegmentationClass"  # of VOC's archive and of annotation tools
SPLIT_FOLDER = "ImageSets/Segmentation"

CLASS_NAMES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""VOC's classes in the order of their numbers 1 to 20 in its masks."""


class VocFolder:
    """Random-access source over one split of a VOC folder.

    `source[i]` is a dict with `id` (str), `image` (uint8 [H, W, 3], RGB as stored), `tags` (float32 [C], 1
    for each class in the image, else 0) and, only where `with_masks` is set, `mask` (uint8 [H, W], 0
    background, 1..C the classes in the order of `class_names`, 255 ignore). Tags come from the tag file for
    each image that it lists, else from which classes occur in the mask. Training sees nothing else of a mask.

    The constructor reads the two lists and checks that every file exists; `source[i]` decodes images. Instances
    hold only strings and numbers, so they are cheap to send to worker processes and safe to share between threads.

    Args:
      root: the folder that holds JPEGImages.
      split: name of a list in ImageSets/Segmentation, without ".txt". A line is an id, with or without suffix, or
        the path of an image below `root` and, after white space, that of its mask.
      class_names: the C class names, without background.
      mask_values: the number that each class has in the mask files, 1..255.
      mask_ignore: the number of pixels that aren't annotated; `rml_jax.data.masks.NO_IGNORE` for none.
      tags_file: see `read_tags`; "" takes all tags from the masks. Its rows name images by their id, by a path that
        ends in it, or by the last part of an id where that is unambiguous. With a tag file, masks are optional for
        the training images that it lists.
      mask_folder: the folder of masks: its path, or its name below `root`. "" takes SegmentationClassAug, or
        SegmentationClass where there is no such folder.
      with_masks: whether items carry their masks. Every image then needs one.

    Raises:
      UserError: by the constructor for missing folders, lists, images or masks, an image named twice or ambiguously,
        an image with neither tags nor mask, and malformed lists, class names or mask values; by `source[i]` for
        an image that can't be decoded, a mask that is RGB-coded, has unknown values, or has another size
        than its image.
    """

    def __init__(
        self,
        root,
        split,
        class_names,
        mask_values,
        mask_ignore=IGNORE,
        *,
        tags_file="",
        mask_folder="",
        with_masks=False,
    ):
        self.class_names = tuple(class_names)
        self.mask_values = tuple(int(value) for value in mask_values)
        self.with_masks = with_masks
        self._root = str(root)
        self.mask_ignore = mask_ignore
        check_classes(self.class_names, self.mask_values, mask_ignore)
        _check_folders(Path(root))
        self._mask_folder = str(find_mask_folder(root, mask_folder))
        self._colours = read_label_map([self._mask_folder, root], self.class_names)
        split_file = Path(root, SPLIT_FOLDER, f"{split}.txt")
        # By id, only where it isn't what the id says: ID.jpg, and ID.png in the folder of masks.
        self._images, self._masks = {}, {}
        files = functools.cache(lambda: _list_files(root))  # Most data sets need no list of them.
        self._ids = self._read_ids(split_file, files)
        self._tags = self._read_tags(tags_file, files) if tags_file else {}
        self._presence = {}  # by id, so that each mask is decoded once
        if tags_file and not with_masks and not self._tags:
            raise UserError(f"{tags_file}: found tags for none of the images in {split_file}")
        self._check_files(split_file, tags_file)

    def __len__(self):
        return len(self._ids)

    def __getitem__(self, index):
        name = self._ids[index]
        item = {"id": name, "image": read_image(self._image_path(name))}
        if self.with_masks:
            item["mask"] = self._mask_for(name, item["image"])
        if name in self._tags:
            item["tags"] = np.zeros(len(self.class_names), np.float32)
            item["tags"][list(self._tags[name])] = 1.0
            return item
        if name not in self._presence:
            mask = item["mask"] if self.with_masks else self._mask_for(name, item["image"])
            self._presence[name] = presence(mask, len(self.class_names))
        item["tags"] = self._presence[name].copy()
        return item

    def item_tags(self):
        """Returns the id of each image and the positions of its tags, ascending; None if its mask is unreadable."""
        names = [name for name in self._ids if name not in self._tags and name not in self._presence]
        if names:
            progress = Progress("tags from masks", len(names), "masks")
            with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                for number, present in enumerate(pool.map(self._read_presence, names), 1):
                    if present is not None:
                        self._presence[names[number - 1]] = present
                    progress.update(number)
        numbers = {name: tuple(np.flatnonzero(present).tolist()) for name, present in self._presence.items()}
        numbers |= self._tags
        return [(name, numbers.get(name)) for name in self._ids]

    def _read_presence(self, name):
        try:
            return presence(self._read_mask(name), len(self.class_names))
        except UserError:  # Training says so when it comes to this image.
            return None

    def _read_tags(self, tags_file, files):
        """Returns a dict from id to class numbers, of the ids that the tag file lists.

        A row that is no image's whole id may be a longer path that ends in an id, or the end of an id.
        """
        tags = read_tags(tags_file, self.class_names)
        ids = {image_id(name): name for name in self._ids}
        by_last_part = {}
        for name in ids:
            by_last_part.setdefault(PurePosixPath(name).name, []).append(name)
        rows = {name: name for name in ids if name in tags}
        for row in tags:
            alike = [name for name in by_last_part.get(PurePosixPath(row).name, ()) if name not in tags]
            found = [
                name for name in alike if f"/{row}".endswith(f"/{name}") or f"/{name}".endswith(f"/{row}")
            ]
            if not found or row in ids or row in files():
                continue  # A row for another image.
            taken = [row, rows[found[0]]] if found[0] in rows else [row]
            if len(taken) > 1 or len(found) > 1:
                raise UserError(
                    f"{tags_file}: found {' and '.join(map(repr, taken))} for {' and '.join(map(repr, found))}, "
                    "expected one row with the whole id for each image"
                )
            rows[found[0]] = row
        return {ids[name]: tags[row] for name, row in rows.items()}

    def _read_ids(self, split_file, files):
        """Returns the ids that a list names, and notes the files of those that have others than an id says."""
        lines = {}
        for line in read_list(split_file):
            name = (
                line
                if os.path.isfile(self._image_path(line))
                else self._parse_line(line, files(), split_file)
            )
            if name in lines:
                raise UserError(f"{split_file}: found {lines[name]!r} and {line!r}, expected each image once")
            lines[name] = line
        return tuple(lines)

    def _parse_line(self, line, files, split_file):
        """Returns the id in a line of a list: an id, perhaps with suffix, or the paths of an image and its mask."""
        image, *mask = [line] if image_id(line) in files else line.split()
        if len(mask) > 1 or (mask and image_id(mask[0]) == mask[0]):
            return line  # No pair of paths.
        if image_id(image) not in files:
            image = image.rpartition(f"{IMAGE_FOLDER}/")[2]
        name = image_id(image)
        if name in files:
            found = [path for path in files[name] if path == image] or files[name]
            if len(found) > 1:
                raise UserError(
                    f"{split_file}: found {' and '.join(found)} for {line!r}, expected one image for each id"
                )
            self._images[name] = found[0]
        if mask:
            self._masks[name] = mask[0].lstrip("/")
        return name

    def _image_path(self, name):
        return Path(self._root, IMAGE_FOLDER, self._images.get(name, f"{name}.jpg"))

    def _mask_path(self, name):
        if name in self._masks:
            return Path(self._root, self._masks[name])
        return Path(self._mask_folder, f"{name}.png")

    def read_mask(self, index):
        """Reads an item's mask alone, uint8 [H, W]."""
        return self._read_mask(self._ids[index])

    def _read_mask(self, name):
        return read_mask(self._mask_path(name), self.mask_values, self.mask_ignore, self._colours)

    def _mask_for(self, name, image):
        mask = self._read_mask(name)
        check_same_size(mask, image, self._mask_path(name))
        return mask

    def _check_files(self, split_file, tags_file):
        without_image = [i for i in self._ids if not os.path.isfile(self._image_path(i))]
        if without_image:
            path = self._image_path(without_image[0])
            raise UserError(f"{split_file}: no image {path} for {self._share(without_image)}")
        masks_for = self._ids if self.with_masks else [i for i in self._ids if i not in self._tags]
        without_mask = [i for i in masks_for if not os.path.isfile(self._mask_path(i))]
        if without_mask:
            path = self._mask_path(without_mask[0])
            wanted = f"neither tags in {tags_file} nor a" if tags_file and not self.with_masks else "no"
            raise UserError(
                f"{split_file}: {wanted} mask {path} for {self._share(without_mask)}; another folder of masks: "
                "config.data.masks"
            )

    def _share(self, missing):
        return f"id {missing[0]!r} (missing for {len(missing)} of {len(self._ids)} ids)"


def _check_folders(root):
    for folder in (root, root / IMAGE_FOLDER, root / SPLIT_FOLDER):
        if not folder.is_dir():
            raise UserError(
                f"{folder} is no folder: expected VOC's layout, ROOT/{IMAGE_FOLDER} and ROOT/{SPLIT_FOLDER}"
            )


def find_mask_folder(root, mask_folder=""):
    """Returns the path of the folder of masks (`VocFolder`). It need not exist if `mask_folder` is "".

    Raises:
      UserError: if there is no folder of that name or path.
    """
    if not mask_folder:
        names = (MASK_FOLDER, _OWN_MASK_FOLDER)
        return next((path for name in names if (path := Path(root, name)).is_dir()), Path(root, MASK_FOLDER))
    for path in (Path(root, mask_folder), Path(mask_folder)):
        if path.is_dir():
            return path
    raise UserError(
        f"config.data.masks is {mask_folder!r}: expected the name of a folder in {root}, or a folder's path"
    )


def _list_files(root):
    """Returns a dict from id to the paths of the images below JPEGImages that have it."""
    folder, found = os.path.join(root, IMAGE_FOLDER), {}
    for _, files in walk(folder):
        for path in sorted(files):
            if os.path.splitext(path)[1].lower() in image_suffixes():
                path = Path(os.path.relpath(path, folder)).as_posix()
                found.setdefault(image_id(path), []).append(path)
    return found


def _make(data_config, split, with_masks):
    if not data_config.root:
        raise UserError(f"config.data.root is empty: expected the folder that holds {IMAGE_FOLDER}/")
    source = VocFolder(
        data_config.root,
        split,
        data_config.class_names,
        data_config.mask_values,
        data_config.mask_ignore,
        tags_file=data_config.tags,
        mask_folder=data_config.masks,
        with_masks=with_masks,
    )
    if not with_masks and not data_config.tags:
        check_masks(source, data_config)  # All tags come from the masks.
    return source


def _has_masks(data_config, split):
    """Returns whether there are masks: where there is a tag file, training needs none."""
    del split  # There is one folder of masks.
    return not data_config.tags or find_mask_folder(data_config.root, data_config.masks).is_dir()


LAYOUT = DataLayout(
    make=_make,
    has_masks=_has_masks,
    licence="In PASCAL VOC's layout. If these are VOC's own images: they come from Flickr and are subject to "
    "Flickr's terms of use; the challenge's organisers offer them for research. Whoever passes the model on must see "
    "whether that covers it.",
)
