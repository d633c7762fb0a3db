"""A folder of images with tags: its training and its validation part."""

import functools
import hashlib
import json

from rml_jax.data.images import read_mask
from rml_jax.data.preparation.base import Plan, Planned, PreparedBuilder
from rml_jax.data.sources.folder import PhotoFolder
from rml_jax.utils.errors import UserError


class TaggedFolder(PreparedBuilder):
    """The parts `train` and `val` of a PhotoFolder. Masks are optional; with any, each validation image needs one.

    Args:
      root: the folder of photographs.
      folder_options: keyword arguments of PhotoFolder.
      max_bad, options: see PreparedBuilder.

    Raises:
      UserError: as PhotoFolder.
    """

    upright = True

    def __init__(self, *, root, folder_options, **options):
        validates = folder_options["val_list"] or folder_options["val_fraction"]
        splits = ("train", "val") if validates else ("train",)
        self._root, self._masks = str(root), str(folder_options["mask_folder"])
        self._parts = {split: PhotoFolder(root, split == "train", **folder_options) for split in splits}
        self.class_names = self._parts["train"].class_names
        self.tags_from = str(folder_options["tags_file"]) or "names of sub-folders"
        super().__init__(**options)

    def settings(self):
        """Returns also a digest of each part, which differs once files or tags of the folder have changed."""
        state = {split: [_state(photo) for photo in photos] for split, photos in self._photos().items()}
        digest = hashlib.sha256(json.dumps(state).encode()).hexdigest()
        return {"root": self._root, "masks": self._masks, "content": digest}

    def plan(self, dl_manager):
        del dl_manager  # Nothing is downloaded.
        splits = {
            split: [
                Planned(
                    photo.id, str(photo.image), functools.partial(self._load_files, photo, split == "val")
                )
                for photo in photos
            ]
            for split, photos in self._photos().items()
        }
        untagged = self._parts["train"].untagged
        note = f"{untagged} images of the folder have no tags and are left out"
        return Plan(splits, dict.fromkeys(splits, note), [self._root])

    def _photos(self):
        return {split: [part.photo(i) for i in range(len(part))] for split, part in self._parts.items()}

    def _load_files(self, photo, needs_mask):
        try:
            data = photo.image.read_bytes()
        except OSError as error:
            raise UserError(f"{photo.image}: {error.strerror}, expected a photograph") from error
        if photo.mask is None or not (needs_mask or photo.mask.is_file()):
            return data, photo.numbers, None
        return data, photo.numbers, read_mask(photo.mask, self._parts["train"].mask_values)


def _state(photo):
    """Returns values that change if the image, its mask or its tags change."""
    files = [path.stat() for path in (photo.image, photo.mask) if path is not None and path.is_file()]
    return [photo.id, photo.numbers, *((file.st_size, file.st_mtime_ns) for file in files)]
