"""Image-level tags from a CSV or JSON Lines file, and the class list that they make.

    image,tags                     {"image": "a.jpg", "tags": ["cat", "dog"]}
    a.jpg,cat|dog                  {"image": "b.jpg", "tags": ""}
    b.jpg,

Tags are separated by `|` or `;`. Blanks around them and letter case are of no account. No tag means that none of the
classes is in the image. Images are named by their path below the folder, with or without the suffix.
"""

import csv
import json
import re
import unicodedata
from pathlib import Path, PurePosixPath

from rml_jax.data.images import image_suffixes
from rml_jax.labels import IGNORE
from rml_jax.utils.errors import UserError

_HEADER = ["image", "tags"]


def read_tags(path, class_names):
    """The tags of each image that a tag file lists, as class numbers.

    Args:
      path: CSV with the header `image,tags`, or JSON Lines (.jsonl), UTF-8 with or without a byte-order mark.
      class_names: the known tags.

    Returns:
      Dict from `image_id` to a tuple of positions in `class_names`, ascending.

    Raises:
      UserError: as `read_tag_names`, and for an unknown tag. The message names the line.
    """
    places = {tag_key(name): number for number, name in enumerate(class_names)}
    numbers = {}
    for name, (tags, where) in read_tag_names(path).items():
        unknown = [tag for tag in tags if tag_key(tag) not in places]
        if unknown:
            raise UserError(f"{where}: found tag {unknown[0]!r}, expected one of {', '.join(class_names)}")
        numbers[name] = tuple(sorted({places[tag_key(tag)] for tag in tags}))
    return numbers


def read_tag_names(path):
    """The tags of each image that a tag file lists, as they are written.

    Args:
      path: see `read_tags`.

    Returns:
      Dict from `image_id` to (tuple of tags without blanks around them, "PATH line N").

    Raises:
      UserError: if the file is missing, no UTF-8 text or empty, or has another header, a row without exactly the two
        columns, or an image twice. The message names the line.
    """
    rows = _json_rows(path) if Path(path).suffix.lower() in (".jsonl", ".json") else _csv_rows(path)
    tags = {}
    for name, cell, where in rows:
        name = image_id(name)
        if name in tags:
            raise UserError(f"{where}: found image {name!r} a second time, expected each image once")
        parts = re.split(r"[|;]", cell) if isinstance(cell, str) else cell
        tags[name] = (tuple(filter(None, map(_clean, parts))), where)
    if not tags:
        raise UserError(f"{path}: found no images, expected one a line")
    return tags


def class_list(tags):
    """The class names that occur among tags.

    Args:
      tags: iterable of str.

    Returns:
      Tuple of str in alphabetical order; of spellings that differ in case alone, the first that occurs.
    """
    names = {}
    for tag in tags:
        names.setdefault(tag_key(tag), _clean(tag))
    return tuple(names[key] for key in sorted(names))


def image_id(name):
    """The id that an image's file name or path stands for: no suffix, one form for accented letters.

    Only image suffixes are cut: an id may itself contain dots.
    """
    path = PurePosixPath(unicodedata.normalize("NFC", name.strip().replace("\\", "/")))
    return str(path.with_suffix("") if path.suffix.lower() in image_suffixes() else path)


def check_classes(class_names, mask_values, ignore=IGNORE):
    """Raises UserError unless there are names, each once, and as many different mask values, 1..255 but `ignore`."""
    if not class_names or len({tag_key(name) for name in class_names}) != len(class_names):
        raise UserError(f"class_names is {class_names}: expected at least one name and each only once")
    if len(mask_values) != len(class_names) or len(set(mask_values)) != len(mask_values):
        raise UserError(
            f"mask_values is {mask_values}: expected {len(class_names)} different numbers, one per class name"
        )
    if not all(0 < value <= 255 and value != ignore for value in mask_values):
        raise UserError(
            f"mask_values is {mask_values}: expected 1 to 255 but not mask_ignore, {ignore} (0 is background)"
        )


def read_list(path):
    """The ids in a text file, one a line, as they are written.

    Blank lines, blanks around an id, CRLF line ends and a missing final newline are of no account.

    Args:
      path: the text file.

    Returns:
      Tuple of str, in the file's order, at least one.

    Raises:
      UserError: if the file is missing, is no UTF-8 text, holds no id, or names an id twice.
    """
    return parse_list(read_text(path), path)


def parse_list(text, path):
    """`read_list` of a text that was read before; errors call it `path`."""
    lines = text.splitlines()
    ids = tuple(line.strip() for line in lines if line.strip())
    if not ids:
        raise UserError(f"{path}: found no ids, expected one a line")
    seen = set()
    for name in ids:
        if name in seen:
            raise UserError(f"{path}: found id {name!r} {ids.count(name)} times, expected each id once")
        seen.add(name)
    return ids


def read_text(path):
    """The text of a UTF-8 file. Raises UserError if it is missing or no UTF-8."""
    return decode_text(_read(path), path)


def decode_text(data, path):
    """The text of a UTF-8 file's bytes. Raises UserError, which calls it `path`, if they are no UTF-8."""
    try:
        # utf-8-sig also reads plain UTF-8; spreadsheets and Windows editors add the byte-order mark it drops.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: found bytes that are no UTF-8, expected a UTF-8 text file") from error


def _read(path):
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}, expected a text file") from error


def _csv_rows(path):
    rows = csv.reader(read_text(path).splitlines())
    header = [cell.strip() for cell in next(rows, [])]
    if header != _HEADER:
        raise UserError(f"{path}: found the header {','.join(header)!r}, expected {','.join(_HEADER)!r}")
    for row in rows:
        if not row:
            continue
        where = f"{path} line {rows.line_num}"
        if len(row) != len(_HEADER):
            raise UserError(f"{where}: found {len(row)} columns, expected {','.join(_HEADER)}")
        yield (*row, where)


def _json_rows(path):
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            row = json.loads(line)
            name, cell = row["image"], row["tags"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'{where}: expected {{"image": "NAME", "tags": ["TAG", ...]}}') from error
        is_tags = isinstance(cell, str) or (isinstance(cell, list) and all(isinstance(t, str) for t in cell))
        if not isinstance(name, str) or not is_tags:
            raise UserError(f"{where}: expected a name for image, and a text or a list of texts for tags")
        yield name, cell, where


def _clean(tag):
    """A tag without stray blanks, in one form for accented letters."""
    return unicodedata.normalize("NFC", " ".join(tag.split()))


def tag_key(tag):
    """What two spellings of a tag have in common: blanks and letter case are of no account."""
    return _clean(tag).casefold()
