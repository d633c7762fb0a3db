"""Exports of Label Studio: CSV, JSON-MIN and JSON.

In CSV and JSON-MIN, the tags are in a column named after the labelling control: a single choice as a string, several
as `{"choices": ["cat", "dog"]}`, regions as a list with their labels. Tasks without annotations are left out; an
annotation without a choice means no tags.
"""

import json
import re
from urllib.parse import parse_qs, unquote, urlsplit

from rml_jax.data.tags.names import clean
from rml_jax.data.tags.row import IMAGE_NAMES, TAG_NAMES, Row, find_names, tags_of
from rml_jax.utils.errors import UserError

_MARKS = {"annotation_id", "lead_time"}
_OTHER_COLUMNS = {"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement"}


def is_record(keys):
    """Returns whether the columns, or the keys of a record, are those of CSV or JSON-MIN."""
    return set(keys) >= _MARKS


def is_task(record):
    """Returns whether a JSON object is a task of the JSON export."""
    return isinstance(record.get("data"), dict) and isinstance(record.get("annotations"), list)


def read_records(records, known):
    """Reads the rows of CSV or JSON-MIN.

    Args:
      records: list of (dict, "PATH line N").
      known: see `split_names`.

    Returns:
      List of Row.

    Raises:
      UserError: if the column of images or tags can't be found, or a cell is malformed.
    """
    controls = []
    for record, where in records:
        image = _image_key(record, where)
        keys = [key for key in record if key not in (*_OTHER_COLUMNS, image)]
        controls += [(key, where) for key in keys if key not in dict(controls)]
    names = [name for name, _ in controls]
    usual = find_names(names, ("choice", "choices", *TAG_NAMES))
    if not names or (len(names) > 1 and len(usual) != 1):
        where = records[0][1] if records else "Label Studio export"
        raise UserError(f"{where}: found the columns {names or ['image']}, expected one with the tags")
    column = usual[0] if usual else names[0]
    return _one_each(
        Row(
            _file_name(record[_image_key(record, where)]),
            _values(record.get(column, ""), where, known),
            where,
        )
        for record, where in records
    )


def read_tasks(tasks, known):
    """Reads the tasks of the JSON export, a list of (dict, "PATH item N"), into a list of Row."""
    rows = []
    for task, where in tasks:
        if not is_task(task):
            raise UserError(f"{where}: expected a task of Label Studio with data and annotations")
        image = _file_name(task["data"][_image_key(task["data"], where)])
        for annotation in task["annotations"]:
            if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
                raise UserError(f"{where}: expected annotations with a list of results")
            if not annotation.get("was_cancelled"):
                values = [r.get("value") if isinstance(r, dict) else r for r in annotation["result"]]
                rows.append(Row(image, _values(values, where, known), where))
    return _one_each(rows)


def _one_each(rows):
    """Removes repeated annotations of an image; annotations that differ raise a UserError."""
    kept = {}
    for row in rows:
        before = kept.setdefault(row.image, row)
        if set(before.tags) != set(row.tags):
            found = " and ".join("|".join(tags) or "no tag" for tags in (before.tags, row.tags))
            raise UserError(f"{row.where}: found two annotations of {row.image!r}, {found!r}, expected one")
    return list(kept.values())


def _image_key(record, where):
    keys = [key for key in find_names(record, IMAGE_NAMES) if isinstance(record[key], str)]
    if not keys:
        raise UserError(f"{where}: found no image, expected one of the columns {', '.join(IMAGE_NAMES)}")
    return keys[0]


def _values(cell, where, known):
    """Returns the distinct tags in a cell, or in a value of the JSON export."""
    if isinstance(cell, str) and cell.strip()[:2] in ('{"', "[{"):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: found {cell[:60]!r}, which is no JSON, expected tags") from error
    if isinstance(cell, dict):
        lists = [value for key, value in cell.items() if key == "choices" or key.endswith("labels")]
        return tuple(dict.fromkeys(tag for tags in lists for tag in tags_of(tags, where, known)))
    if isinstance(cell, list) and all(isinstance(part, dict) for part in cell):
        return tuple(dict.fromkeys(tag for part in cell for tag in _values(part, where, known)))
    # A single choice is written without quotes and may contain any character.
    return (clean(cell),) if isinstance(cell, str) and clean(cell) else tags_of(cell, where, known)


def _file_name(url):
    """Returns the path of the file that a task's URL refers to, as far as Label Studio preserves it."""
    if "://" not in url and not url.startswith("/data/"):
        return url
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    local = parse_qs(parts.query).get("d")  # /data/local-files/?d=folder/a.jpg
    path = local[0] if local else unquote(parts.path)
    return re.sub(r"^/?data/upload/(\d+/)?", "", path).lstrip("/")
