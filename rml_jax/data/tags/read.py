"""Reading of tag files in all formats, and matching of their image names with files."""

import os
import re

from rml_jax.data.tags.cvat import decode_xml, read_cvat
from rml_jax.data.tags.json_rows import read_json
from rml_jax.data.tags.names import image_id, shown, tag_key
from rml_jax.data.tags.table import read_table
from rml_jax.data.tags.text import decode_text, read_bytes
from rml_jax.utils.errors import UserError

TAG_FILE_SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".xml")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
# Label Studio prepends eight hexadecimal digits to the name of an uploaded file.
_UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")


def read_tags(path, class_names):
    """Reads the tags of each image in a tag file, as class indices.

    Args:
      path: the file, in any of the supported formats (docs/data.md, Tag files).
      class_names: the known tags.

    Returns:
      Dict from `image_id` to a tuple of indices in `class_names`, ascending.

    Raises:
      UserError: as `read_tag_names`, and for an unknown tag. The message names the line.
    """
    places = {tag_key(name): number for number, name in enumerate(class_names)}
    numbers = {}
    for name, (tags, where) in read_tag_names(path, class_names).items():
        unknown = [tag for tag in tags if tag_key(tag) not in places]
        if unknown:
            raise UserError(f"{where}: found tag {unknown[0]!r}, expected one of {shown(class_names)}")
        numbers[name] = tuple(sorted({places[tag_key(tag)] for tag in tags}))
    return numbers


def read_tag_names(path, class_names=()):
    """Reads the tags of each image in a tag file, in their original spelling.

    Args:
      path: see `read_tags`.
      class_names: known tags, if there is such a list. A cell that is one of them is not split at a comma.

    Returns:
      Dict from `image_id` to (tuple of tags without surrounding whitespace, "PATH line N").

    Raises:
      UserError: if the file is missing, empty, not Unicode text, has another format, or names an image twice, unless
        it has one row per tag. The message names the line.
    """
    rows = _read_rows(path, class_names)
    tags = {}
    for row in rows:
        _check_row(row)
        name = image_id(row.image)
        if name in tags:
            raise UserError(
                f"{row.where}: found image {name!r} a second time, expected each image once, or one row per tag"
            )
        tags[name] = row.tags, row.where
    if not tags:
        raise UserError(f"{path}: found no images, expected one per line")
    return tags


def _read_rows(path, class_names):
    data = read_bytes(path)
    is_xml = data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<")
    text = decode_xml(data, path) if is_xml else decode_text(data, path)
    start = text.lstrip("\ufeff \t\r\n")[:1]
    if start == "<":
        return read_cvat(text, path)
    if start in ("{", "["):
        return read_json(text, path, class_names)
    return read_table(text.replace("\r\n", "\n").replace("\r", "\n"), path, class_names)


def _check_row(row):
    if not row.image.strip():
        raise UserError(f"{row.where}: found no name of an image, expected one")
    for name in (row.image, *row.tags):
        if _UNPRINTABLE.search(name):
            raise UserError(f"{row.where}: found {name[:60]!r}, expected a name without control characters")


def match_images(tags, files, path, root):
    """Finds the file of each image in a tag file.

    Tools may write paths other than those below the image folder. Therefore leading folders common to all names may
    be missing on either side, and Label Studio's prefix of uploaded files is dropped, but only if that finds every
    image.

    Args:
      tags: dict from image id, as from `read_tags`.
      files: the ids of the images in the folder.
      path, root: the tag file and the folder, for error messages.

    Returns:
      Dict from ids in `files` to the values of `tags`.

    Raises:
      UserError: if an image is not found, or two names refer to the same image.
    """
    for names in _spellings(tags, files):
        if all(name in files for name in names):
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise UserError(f"{path}: found image {twice!r} a second time, expected each image once")
            return dict(zip(names, tags.values(), strict=True))
    missing = [name for name in tags if name not in files]
    raise UserError(f"{path}: no image {missing[0]!r} in {root} (missing for {len(missing)} of {len(tags)})")


def _spellings(tags, files):
    """Yields the list of ids in each possible spelling, the original first."""
    folder = _common_folder(files)
    for dropped in range(len(_common_folder(tags)) + 1):
        shorter = ["/".join(name.split("/")[dropped:]) for name in tags]
        for names in (shorter, list(map(_without_upload_prefix, shorter))):
            yield names
            yield ["/".join((*folder, name)) for name in names]


def _without_upload_prefix(name):
    folder, slash, file = name.rpartition("/")
    return folder + slash + _UPLOAD.sub("", file)


def _common_folder(names):
    """Returns the folders that all names begin with, outermost first."""
    return os.path.commonprefix([name.split("/")[:-1] for name in names])  # noqa: RUF071 (lists, not texts)
