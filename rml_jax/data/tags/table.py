"""Tables with a header, separated by commas, tabs or semicolons."""

import csv
import io

from rml_jax.data.tags import label_studio
from rml_jax.data.tags.row import FORMS, IMAGE_NAMES, TAG_NAMES, Row, find_names, merge_rows, tags_of
from rml_jax.utils.errors import UserError

_YES, _NO = ("1", "1.0", "true", "yes", "x"), ("0", "0.0", "false", "no", "")


def read_table(text, path, known):
    """Reads a table with one row per image or per tag, or with a 0/1 column per class.

    Args:
      text: the content. The separator is detected from the header.
      path: path of the file, for error messages.
      known: names of classes that may contain separators (`split_names`).

    Returns:
      List of Row.

    Raises:
      UserError: if the header or a row has another format. The message names the line.
    """
    header, rows = _cells(text, path)
    image = find_names(header, IMAGE_NAMES)[0]
    if label_studio.is_record(header):
        records = [(dict(zip(header, cells, strict=True)), where) for cells, where in rows]
        return label_studio.read_records(records, known)
    columns = find_names([name for name in header if name != image], TAG_NAMES)
    doubled = [name for name in (image, *columns) if header.count(name) > 1]
    if len(columns) > 1 or doubled:
        found = " and ".join(map(repr, doubled * 2 or columns))
        raise UserError(f"{path}: found the columns {found}, expected one of them")
    if columns:
        return _tag_column(header, rows, image, columns[0], path, known)
    return _class_columns(header, rows, image, path)


def _tag_column(header, rows, image, column, path, known):
    image, column = header.index(image), header.index(column)
    if rows and all(cells[column].strip() in {"0", "1"}.difference(known) for cells, _ in rows):
        raise UserError(
            f"{path}: found only 0 and 1 in the column {header[column]!r}, expected names of tags; a 0/1 column "
            "is read if its header is the name of the class"
        )
    found = [Row(cells[image], tags_of(cells[column], where, known), where) for cells, where in rows]
    return merge_rows(found)


def _class_columns(header, rows, image, path):
    image = header.index(image)
    # pandas writes its index as an unnamed first column.
    classes = [
        (number, name)
        for number, name in enumerate(header)
        if number != image and name and not name.casefold().startswith("unnamed:")
    ]
    found = []
    for cells, where in rows:
        tags = []
        for number, name in classes:
            value = cells[number].strip().casefold()
            if value not in _YES + _NO:
                raise UserError(
                    f"{where}: found {cells[number][:40]!r} in the column {name!r}, expected {FORMS}"
                )
            if value in _YES:
                tags.append(name)
        found.append(Row(cells[image], tuple(tags), where))
    if not classes:
        raise UserError(f"{path}: found the header {','.join(header)[:80]!r}, expected {FORMS}")
    return found


def _cells(text, path):
    """Returns the header and a list of (cells, "PATH line N"), without empty rows; rows are as long as the header."""
    lines = text.split("\n")
    start = next((number for number, line in enumerate(lines) if line.strip()), 0)
    if lines[start].strip().lower().startswith("sep="):  # Excel's hint of the separator
        start += 1
    first = lines[start] if start < len(lines) else ""
    delimiter, header = _find_delimiter(first, path)
    reader = csv.reader(
        io.StringIO("\n".join(lines[start + 1 :]), newline=""), delimiter=delimiter, strict=True
    )
    rows, line = [], start + 1
    while True:
        where = f"{path} line {line + reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{where}: {error}, expected a row of {delimiter.join(header)[:80]!r}") from error
        if cells is None:
            return header, rows
        if not any(cell.strip() for cell in cells):
            continue
        if any(cell.strip() for cell in cells[len(header) :]) or len(cells) < len(header):
            raise UserError(
                f"{where}: found {len(cells)} columns, expected {len(header)}, {delimiter.join(header)[:80]!r} "
                "(several tags: cat|dog)"
            )
        rows.append((cells[: len(header)], where))


def _find_delimiter(first, path):
    """Returns the delimiter with which the first line has a column of images and another column, and the header."""
    for delimiter in ",;\t":
        try:
            header = [
                cell.strip() for cell in next(csv.reader([first], delimiter=delimiter, strict=True), [])
            ]
        except csv.Error:
            continue
        while header and not header[-1]:
            header.pop()
        if len(header) > 1 and find_names(header, IMAGE_NAMES):
            return delimiter, header
    raise UserError(f"{path}: found the header {first.strip()[:80]!r}, expected {FORMS}")
