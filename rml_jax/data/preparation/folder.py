"""A folder of images with tags: its training and its validation part."""

import functools
import hashlib
import json

from rml_jax.data.masks import check_all_classes_occur
from rml_jax.data.preparation.base import Plan, Planned, PreparedBuilder
from rml_jax.data.sources.folder import PhotoFolder, describe_left_out
from rml_jax.utils.errors import UserError


class TaggedFolder(PreparedBuilder):
    """The parts `train` and `val` of a PhotoFolder. Masks are optional; with any, each validation image needs one.

    Args:
      root: the folder of photographs.
      folder_options: keyword arguments of PhotoFolder.
      allow_absent: whether a class may be in no mask.
      max_bad, options: see PreparedBuilder.

    Raises:
      UserError: as PhotoFolder.
    """

    upright = True

    def __init__(self, *, root, folder_options, allow_absent=False, **options):
        validates = folder_options["val_list"] or folder_options["val_fraction"]
        splits = ("train", "val") if validates else ("train",)
        self._root, self._masks = str(root), str(folder_options["mask_folder"])
        self._allow_absent = allow_absent
        self._parts = {split: PhotoFolder(root, split == "train", **folder_options) for split in splits}
        self.class_names = self._parts["train"].class_names
        self.tags_from = str(folder_options["tags_file"]) or "names of sub-folders"
        super().__init__(**options)

    def settings(self):
        """Returns also a digest of each part, which differs once files or tags of the folder have changed."""
        state = {split: [_state(photo) for photo in _photos(part)] for split, part in self._parts.items()}
        digest = hashlib.sha256(json.dumps(state).encode()).hexdigest()
        return {"root": self._root, "masks": self._masks, "content": digest}

    def plan(self, dl_manager):
        del dl_manager  # Nothing is downloaded.
        self._check_masks()
        splits = {
            split: [
                Planned(
                    photo.id,
                    str(photo.image),
                    functools.partial(self._load_files, part, index, split == "val"),
                )
                for index, photo in enumerate(_photos(part))
            ]
            for split, part in self._parts.items()
        }
        part = self._parts["train"]
        note = f"{part.untagged} images of the folder have no tags and are left out"
        if part.left_out:
            note += f"; left out, too: {describe_left_out(part.left_out)}"
        return Plan(splits, dict.fromkeys(splits, note), [self._root])

    def _check_masks(self):
        """Checks all masks together, before any is prepared."""
        places = [
            (part, index)
            for part in self._parts.values()
            for index, photo in enumerate(_photos(part))
            if photo.mask is not None and photo.mask.is_file()
        ]
        part = self._parts["train"]
        if places:
            check_all_classes_occur(
                lambda place: places[place][0].read_mask(places[place][1]),
                len(places),
                self._masks,
                part.class_names,
                part.mask_values,
                part.mask_ignore,
                self._allow_absent,
            )

    def _load_files(self, part, index, needs_mask):
        photo = part.photo(index)
        try:
            data = photo.image.read_bytes()
        except OSError as error:
            raise UserError(f"{photo.image}: {error.strerror}, expected a photograph") from error
        if photo.mask is None or not (needs_mask or photo.mask.is_file()):
            return data, photo.numbers, None
        return data, photo.numbers, part.read_mask(index)


def _photos(part):
    return [part.photo(index) for index in range(len(part))]


def _state(photo):
    """Returns values that change if the image, its mask or its tags change."""
    files = [path.stat() for path in (photo.image, photo.mask) if path is not None and path.is_file()]
    return [photo.id, photo.numbers, *((file.st_size, file.st_mtime_ns) for file in files)]
