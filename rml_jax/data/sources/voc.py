"""Photographs in PASCAL VOC's folder layout, with tags from a CSV file or from which classes a mask contains.

    ROOT/JPEGImages/ID.jpg
    ROOT/SegmentationClassAug/ID.png         palette or grey, one class number per pixel, 255 = ignore
    ROOT/ImageSets/Segmentation/SPLIT.txt    one ID a line

VOC's own `SegmentationClass` holds only VOC's 2,913 masks; `SegmentationClassAug` is the usual name of the
folder with SBD's added to them, 12,031 in all (METHOD.md section 5).
"""

from pathlib import Path, PurePath

import numpy as np

from rml_jax.data.images import read_image
from rml_jax.data.masks import check_same_size, presence, read_label_map, read_mask
from rml_jax.data.tags import check_classes, read_list, read_tags
from rml_jax.labels import IGNORE
from rml_jax.utils.errors import UserError

IMAGE_FOLDER = "JPEGImages"
MASK_FOLDER = "SegmentationClassAug"
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
    each image that it lists, else from which classes occur in the mask: the presence of a class is all that a
    training source lets through (METHOD.md, "Task": image-level tags only).

    The constructor reads the two lists and looks whether every file is there; pictures are decoded by
    `source[i]`. Instances hold only strings and numbers, so they are cheap to send to worker processes and
    safe to share between threads.

    Args:
      root: the folder that holds JPEGImages.
      split: name of a list in ImageSets/Segmentation, without ".txt".
      class_names: the C class names, without background.
      mask_values: the number that each class has in the mask files, 1..255.
      mask_ignore: the number of pixels that aren't annotated; `rml_jax.data.masks.NO_IGNORE` for none.
      tags_file: CSV with the columns image,tags (`read_tags`); "" takes all tags from the masks. With a tag
        file, masks are optional for the training images that it lists.
      with_masks: whether items carry their masks. Every image then needs one.

    Raises:
      UserError: by the constructor for missing folders, lists, images or masks, an image named twice, an
        image with neither tags nor mask, and malformed lists, class names or mask values; by `source[i]` for
        a picture that can't be decoded, a mask that is RGB-coded, has unknown values, or has another size
        than its image.
    """

    def __init__(
        self, root, split, class_names, mask_values, mask_ignore=IGNORE, *, tags_file="", with_masks=False
    ):
        self.class_names = tuple(class_names)
        self.mask_values = tuple(int(value) for value in mask_values)
        self.with_masks = with_masks
        self._root = str(root)
        self.mask_ignore = mask_ignore
        check_classes(self.class_names, self.mask_values, mask_ignore)
        _check_folders(Path(root))
        self._colours = read_label_map([Path(root, MASK_FOLDER), root], self.class_names)
        split_file = Path(root, SPLIT_FOLDER, f"{split}.txt")
        self._ids = read_list(split_file)
        tags = read_tags(tags_file, self.class_names) if tags_file else {}
        self._tags = {PurePath(name).name: numbers for name, numbers in tags.items()}
        self._presence = {}  # by id, from masks that were decoded before: no pixel is wanted twice
        if tags_file and not with_masks and self._tags.keys().isdisjoint(self._ids):
            raise UserError(f"{tags_file}: found tags for none of the images in {split_file}")
        self._check_files(split_file, tags_file)

    def __len__(self):
        return len(self._ids)

    def __getitem__(self, index):
        image_id = self._ids[index]
        item = {"id": image_id, "image": read_image(self._image_path(image_id))}
        if self.with_masks:
            item["mask"] = self._mask_for(image_id, item["image"])
        if image_id not in self._tags:
            if image_id not in self._presence:
                mask = item["mask"] if self.with_masks else self._mask_for(image_id, item["image"])
                self._presence[image_id] = presence(mask, len(self.class_names))
            item["tags"] = self._presence[image_id].copy()
        if image_id in self._tags:
            item["tags"] = np.zeros(len(self.class_names), np.float32)
            item["tags"][list(self._tags[image_id])] = 1.0
        return item

    def _image_path(self, image_id):
        return Path(self._root, IMAGE_FOLDER, f"{image_id}.jpg")

    def _mask_path(self, image_id):
        return Path(self._root, MASK_FOLDER, f"{image_id}.png")

    def read_mask(self, index):
        """Returns an item's mask alone, uint8 [H, W]."""
        return self._read_mask(self._ids[index])

    def _read_mask(self, image_id):
        return read_mask(self._mask_path(image_id), self.mask_values, self.mask_ignore, self._colours)

    def _mask_for(self, image_id, image):
        mask = self._read_mask(image_id)
        check_same_size(mask, image, self._mask_path(image_id))
        return mask

    def _check_files(self, split_file, tags_file):
        without_image = [i for i in self._ids if not self._image_path(i).is_file()]
        if without_image:
            path = self._image_path(without_image[0])
            raise UserError(f"{split_file}: no image {path} for {self._share(without_image)}")
        masks_for = self._ids if self.with_masks else [i for i in self._ids if i not in self._tags]
        without_mask = [i for i in masks_for if not self._mask_path(i).is_file()]
        if without_mask:
            path = self._mask_path(without_mask[0])
            wanted = f"neither tags in {tags_file} nor a" if tags_file and not self.with_masks else "no"
            raise UserError(f"{split_file}: {wanted} mask {path} for {self._share(without_mask)}")

    def _share(self, missing):
        return f"id {missing[0]!r} (missing for {len(missing)} of {len(self._ids)} ids)"


def _check_folders(root):
    for folder in (root, root / IMAGE_FOLDER, root / SPLIT_FOLDER):
        if not folder.is_dir():
            raise UserError(
                f"{folder} is no folder: expected VOC's layout, ROOT/{IMAGE_FOLDER} and ROOT/{SPLIT_FOLDER}"
            )
