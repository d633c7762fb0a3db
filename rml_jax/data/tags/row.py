"""The rows that all readers of tag files return."""

from pathlib import PurePosixPath
from typing import NamedTuple

from rml_jax.data.tags.names import clean, image_id, split_names
from rml_jax.utils.errors import UserError

FORMS = (
    "a table with the columns image,tags (several tags: cat|dog, or one row per tag) or one 0/1 column per class; "
    "JSON Lines with image and tags; metadata.jsonl; Label Studio CSV, JSON or JSON-MIN; CVAT for images XML; "
    "COCO JSON"
)
IMAGE_NAMES = (
    "image",
    "filename",
    "file_name",
    "file",
    "path",
    "filepath",
    "file_path",
    "image_path",
    "image_name",
    "img",
    "name",
    "image_id",
)
TAG_NAMES = (
    "tags",
    "tag",
    "labels",
    "label",
    "classes",
    "class",
    "class_name",
    "categories",
    "category",
)


class Row(NamedTuple):
    """The tags of an image at one place in a file.

    Attributes:
      image: name of the image as written.
      tags: the tags, without surrounding whitespace.
      where: "PATH line N" or another place, for error messages.
    """

    image: str
    tags: tuple[str, ...]
    where: str


def find_names(keys, names):
    """Returns the keys that are in `names`, in the order of `names`; case, spaces and hyphens are ignored."""
    spelled = {}
    for key in keys:
        spelled.setdefault(key.strip().casefold().replace(" ", "_").replace("-", "_"), key)
    return [spelled[name] for name in names if name in spelled]


def merge_rows(rows):
    """Merges the rows of each image if the file has one row per tag, that is, if no row has two tags.

    Otherwise, rows are unchanged. So are rows of an image if one of them has no tag, or if their file names differ in
    suffix. Repeated rows of the same tag are removed.
    """
    one_per_tag = all(len(row.tags) <= 1 for row in rows)
    merged = {}
    for row in rows:
        key = image_id(row.image), PurePosixPath(row.image.strip()).suffix
        before = merged.setdefault(key, [row])[-1]
        if one_per_tag and row.tags and before.tags:
            merged[key][-1] = before._replace(tags=tuple(dict.fromkeys((*before.tags, *row.tags))))
        elif before is not row:
            merged[key].append(row)
    return [row for rows in merged.values() for row in rows]


def tags_of(cell, where, known):
    """Returns the tags in a cell.

    Args:
      cell: a string, split by `split_names`, or a list of strings, each a tag.
      where: the place of the cell, for error messages.
      known: see `split_names`.

    Returns:
      Tuple of str.

    Raises:
      UserError: for anything else.
    """
    if isinstance(cell, list) and all(isinstance(tag, str) for tag in cell):
        return tuple(filter(None, map(clean, cell)))
    if not isinstance(cell, str):
        raise UserError(
            f"{where}: expected the names of tags, a text or a list of texts, found {_short(cell)}"
        )
    if "\n" in cell.strip():  # An open quotation mark makes a table's next rows part of the cell.
        raise UserError(f"{where}: found a line break inside of the cell {_short(cell)}, expected tags")
    try:
        return split_names(cell, known)
    except ValueError as error:
        raise UserError(
            f"{where}: {error}, expected cat|dog, 'cat,dog' or a list such as ['cat', 'dog']"
        ) from error


def _short(value):
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
