"""The categories of an annotation file in COCO's format, and the classes that they stand for."""

import dataclasses

from rml_jax.data.tags import check_class_names, tag_key
from rml_jax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class CocoCategories:
    """The C classes of a data set.

    Attributes:
      names: of the classes.
      ids: the `category_id` of each in the annotation files, int.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]


def as_id(value):
    """Returns an id as int where it is a whole number or its digits, a text as it is, None for anything else."""
    if isinstance(value, str):
        return int(value) if value.isdecimal() and value.isascii() and value == value.lstrip("0") else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if isinstance(value, int) or value.is_integer() else None


def read_categories(content, path, expected=None):
    """Reads the categories of an annotation file.

    Classes are in the ascending order of the ids. Categories of one name are one class. Without an annotation,
    "background" and a category that is only the supercategory of others (Roboflow writes one with the id 0) are none.

    Args:
      content: dict; `annotations` may be missing.
      path: path of the file, for error messages.
      expected: CocoCategories that the file must agree with; None takes those of the file.

    Returns:
      CocoCategories, `expected` where that is given, and a dict from each id in the file to the place 0..C-1 of its
      class.

    Raises:
      UserError: if there are no categories, one is malformed or named background, or they contradict `expected`.
    """
    named = _named_categories(content, path)
    if expected is None:
        by_key = {}
        for number, name in sorted(named.items()):
            by_key.setdefault(tag_key(name), (name, number))
        expected = CocoCategories(*zip(*by_key.values(), strict=True))
        check_class_names(expected.names, f"{path}: categories")
    else:
        _check_equal(named, expected, path, _used_ids(content))
    places = {tag_key(name): place for place, name in enumerate(expected.names)}
    return expected, {n: places[tag_key(name)] for n, name in named.items() if tag_key(name) in places}


def choose_categories(categories, class_names, path):
    """Returns the CocoCategories of some classes, in their order.

    Raises:
      UserError: if one is not among `categories`.
    """
    ids = dict(zip(map(tag_key, categories.names), categories.ids, strict=True))
    unknown = [name for name in class_names if tag_key(name) not in ids]
    if unknown:
        raise UserError(
            f"{path}: found the categories {_listed(categories)}, expected {unknown[0]!r} among them, as in "
            "config.data.class_names"
        )
    return CocoCategories(tuple(class_names), tuple(ids[tag_key(name)] for name in class_names))


def _named_categories(content, path):
    """Returns a dict from id to name of the categories that are classes."""
    entries = content.get("categories")
    if not isinstance(entries, list) or not entries:
        raise UserError(f'{path}: found no categories, expected a list such as [{{"id": 1, "name": "cat"}}]')
    names, supercategories = {}, set()
    for number, entry in enumerate(entries, 1):
        entry = entry if isinstance(entry, dict) else {}
        key, name, above = as_id(entry.get("id")), entry.get("name"), entry.get("supercategory")
        if (
            not isinstance(key, int)
            or not isinstance(name, str)
            or not name.strip()
            or not name.isprintable()
        ):
            raise UserError(
                f"{path} category {number}: found id {entry.get('id')!r:.60} and name {name!r:.60}, expected "
                "a whole number and a text"
            )
        if key in names:
            raise UserError(f"{path} category {number}: found the id {key} a second time, expected each once")
        names[key] = " ".join(name.split())
        if isinstance(above, str):
            supercategories.add((tag_key(above), key))
    used = _used_ids(content)

    def is_class(key, name):
        is_above = any(above == tag_key(name) and below != key for above, below in supercategories)
        return key in used or not (is_above or tag_key(name) == "background")

    kept = {key: name for key, name in names.items() if is_class(key, name)}
    if not kept:
        raise UserError(f"{path}: found no category but {', '.join(names.values())}, expected classes")
    return kept


def _used_ids(content):
    annotations = (entry for entry in content.get("annotations", ()) if isinstance(entry, dict))
    return {as_id(entry.get("category_id")) for entry in annotations}


def _check_equal(named, expected, path, used):
    """Raises UserError if a class has another id than expected, or a category with annotations is no class."""
    ids = {}
    for number, name in named.items():
        ids.setdefault(tag_key(name), []).append(number)
    for name, number in zip(expected.names, expected.ids, strict=True):
        if number not in ids.get(tag_key(name), [number]):
            found = f"category {ids[tag_key(name)][0]} {name!r}"
            raise UserError(f"{path}: found {found}, expected {number} {name!r} as in the training split")
    known = set(map(tag_key, expected.names))
    for number, name in named.items():
        if number in used and tag_key(name) not in known:
            raise UserError(
                f"{path}: found category {number} {name!r}, expected those of the training split or of "
                f"config.data.class_names: {_listed(expected)}"
            )


def _listed(categories, most=20):
    pairs = [f"{n} {name!r}" for name, n in zip(categories.names, categories.ids, strict=True)]
    return ", ".join(pairs[:most]) + (f", ... ({len(pairs)} in all)" if len(pairs) > most else "")
