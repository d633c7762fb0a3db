"""Names of tags, classes and images: normalisation, splitting and checks."""

import json
import re
import unicodedata
from pathlib import PurePosixPath

from rml_jax.data.images import image_suffixes
from rml_jax.labels import IGNORE
from rml_jax.utils.errors import UserError

# Suffixes removed from names in tag files and lists, even if the format can't be read here.
_NAME_SUFFIXES = (".avif", ".heic", ".heif", ".jfif", ".jp2", ".jxl")

# Class numbers of a mask are 1..254: 0 is background, 255 ignored.
MAX_CLASSES = IGNORE - 1
_SEPARATOR = re.compile(r"\s*(?:[,;|]|$)")
_QUOTED = re.compile(r"""\s*(?:"((?:[^"\\]|\\.|"")*)"|'((?:[^'\\]|\\.)*)')(?=\s*(?:[,;|]|$))""")
_BARE = re.compile(r"\s*([^,;|]*)")
_BRACKETS = {"[": "]", "(": ")", "{": "}"}
_NO_NAME = re.compile(r"""^["\[\]{}]|[\[\]{}]$|^'.*'""")  # remains of a list


def split_names(text, known=()):
    """Splits a string of several tags.

    Tags are separated by `|`, `;` or `,`. A tag in quotes is taken literally. Lists in the syntax of Python or JSON
    are split as well: `['cat', 'dog']`, `["cat","dog"]`.

    Args:
      text: str.
      known: names of classes. A text that is one of them is not split, even if it contains a separator.

    Returns:
      Tuple of str, without surrounding whitespace; empty tags are left out.

    Raises:
      ValueError: for brackets, braces or quotes that do not form a list. The message shows the text.
    """
    text = text.strip()
    if tag_key(text) in {tag_key(name) for name in known}:
        return (clean(text),)
    inner = text[1:-1] if len(text) > 1 and _BRACKETS.get(text[0]) == text[-1] else text
    names, place = [], 0
    while place < len(inner):
        quoted = _QUOTED.match(inner, place)
        match = quoted or _BARE.match(inner, place)
        name = _unquoted(quoted) if quoted else clean(match[1])
        if not quoted and _NO_NAME.search(name):
            raise ValueError(f"found {text!r}, which is no list of tags")
        names.append(clean(name))
        place = _SEPARATOR.match(inner, match.end()).end()
    return tuple(filter(None, names))


def _unquoted(match):
    if match[1] is None:
        return match[2].replace("\\'", "'").replace("\\\\", "\\")
    try:
        return json.loads(f'"{match[1]}"')
    except ValueError:
        return match[1].replace('""', '"')


def class_list(tags):
    """Returns the class names that occur among tags.

    Args:
      tags: iterable of str.

    Returns:
      Tuple of str in alphabetical order; the first spelling, if several differ in case only.
    """
    names = {}
    for tag in tags:
        names.setdefault(tag_key(tag), clean(tag))
    return tuple(names[key] for key in sorted(names))


def image_id(name):
    """Returns the id of an image by its file name or path: without suffix, accents composed (NFC).

    Only suffixes of images are removed, since an id may contain dots.
    """
    path = PurePosixPath(unicodedata.normalize("NFC", name.strip().replace("\\", "/")))
    suffix = path.suffix.lower()
    return str(path.with_suffix("") if suffix in image_suffixes() or suffix in _NAME_SUFFIXES else path)


def check_class_names(class_names, where="config.data.class_names"):
    """Checks a class list.

    Args:
      class_names: the C names, without background.
      where: the key or file of the list, for error messages.

    Raises:
      UserError: if there are none or more than 254, or a name occurs twice, is empty, is not a str, or is background.
    """
    if not isinstance(class_names, tuple | list) or not class_names:
        raise UserError(f"{where} is {class_names!r}: expected at least one name")
    if len(class_names) > MAX_CLASSES:
        raise UserError(f"{where}: found {len(class_names)} classes, expected at most {MAX_CLASSES}")
    seen = {}
    for name in class_names:
        if not isinstance(name, str) or not tag_key(name):
            raise UserError(f"{where}: found {name!r} for a class, expected a name")
        if tag_key(name) == "background":
            raise UserError(
                f"{where}: found the class {name!r}, expected another name: background is what no class covers"
            )
        if tag_key(name) in seen:
            raise UserError(
                f"{where}: found both {seen[tag_key(name)]!r} and {name!r}, expected each class once"
            )
        seen[tag_key(name)] = name


def check_classes(class_names, mask_values, ignore=IGNORE):
    """Checks a class list and the value of each class in mask files.

    Args:
      class_names: the C names, without background.
      mask_values: the value of each class in the files.
      ignore: the value of pixels that are not annotated, -1 for none.

    Raises:
      UserError: see `check_class_names`; or if mask_values are not C different values from 1 to 255 without `ignore`.
    """
    check_class_names(class_names, "class_names")
    if len(mask_values) != len(class_names) or len(set(mask_values)) != len(mask_values):
        raise UserError(
            f"mask_values is {mask_values}: expected {len(class_names)} different ones, one per class"
        )
    wrong = [value for value in mask_values if not 0 < value <= 255 or value == ignore]
    if wrong:
        raise UserError(
            f"mask_values is {mask_values}: expected 1 to 255 but not mask_ignore, {ignore} (0 is background)"
        )


def shown(names, most=20):
    """Joins at most `most` names for an error message."""
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def clean(tag):
    """Returns a tag with single spaces inside and none around, accents composed (NFC)."""
    return unicodedata.normalize("NFC", " ".join(tag.split()))


def tag_key(tag):
    """Returns a key that is equal for all spellings of a tag: whitespace and letter case are ignored."""
    return clean(tag).casefold()
