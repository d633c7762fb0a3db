"""JSON files: detection of their format, and the rows of JSON Lines, arrays and metadata.jsonl."""

import json

from rml_jax.data.tags import coco, label_studio
from rml_jax.data.tags.row import FORMS, IMAGE_NAMES, TAG_NAMES, Row, find_names, merge_rows, tags_of
from rml_jax.utils.errors import UserError

_EXPECTED = 'expected {"image": "NAME", "tags": ["TAG", ...]}'


def read_json(text, path, known):
    """Reads a JSON file in any of the supported formats.

    Args:
      text: the content.
      path: path of the file, for error messages.
      known: see `split_names`.

    Returns:
      List of Row.

    Raises:
      UserError: if it is not JSON or has another format. The message names the line, or the item of an array.
    """
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise UserError(f"{path}: found JSON that is nested too deeply, expected {FORMS}") from error
    except json.JSONDecodeError as error:
        if not _is_json(text.lstrip().split("\n")[0]):
            raise UserError(
                f"{path} line {error.lineno}: found no JSON ({error.msg}), expected {FORMS}"
            ) from error
        return _read_records(_lines(text, path), known)
    except ValueError as error:  # a number with too many digits
        raise UserError(f"{path}: found no JSON ({error}), expected {FORMS}") from error
    if isinstance(content, dict) and coco.is_coco(content):
        return coco.read_coco(content, path)
    if isinstance(content, dict):
        return _read_records([(content, f"{path} line 1")], known)
    if not isinstance(content, list):
        raise UserError(f"{path}: found no JSON object, expected {FORMS}")
    return _read_records([(item, f"{path} item {number}") for number, item in enumerate(content, 1)], known)


def _lines(text, path):
    # Not `splitlines`, which also splits at separators that JSON allows inside strings.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{path} line {number}"
            try:
                yield json.loads(line), where
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: {_EXPECTED}") from error


def _read_records(records, known):
    records = list(records)
    for record, where in records:
        if not isinstance(record, dict):
            raise UserError(f"{where}: {_EXPECTED}")
    first = records[0][0] if records else {}
    if label_studio.is_task(first):
        return label_studio.read_tasks(records, known)
    if label_studio.is_record(first):
        return label_studio.read_records(records, known)
    return merge_rows([_read_record(record, where, known) for record, where in records])


def _read_record(record, where, known):
    images, tags = find_names(record, IMAGE_NAMES), find_names(record, TAG_NAMES)
    if not images or not isinstance(record[images[0]], str):
        raise UserError(f"{where}: {_EXPECTED}")
    if len(tags) > 1:
        raise UserError(f"{where}: found {' and '.join(map(repr, tags))}, expected one of them")
    if tags:
        cell = record[tags[0]]
    else:  # Hugging Face's object detection: {"objects": {"bbox": [...], "categories": [...]}}
        objects = record.get("objects")
        keys = find_names(objects, TAG_NAMES) if isinstance(objects, dict) else []
        if len(keys) != 1:
            raise UserError(f"{where}: {_EXPECTED}")
        cell = objects[keys[0]]
    return Row(record[images[0]], tuple(dict.fromkeys(tags_of(cell, where, known))), where)


def _is_json(line):
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
