"""Text files: their encoding, and lists with one id per line."""

import codecs
from pathlib import Path

from rml_jax.utils.errors import UserError

# UTF-32 first: its little-endian byte-order mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_list(path):
    """Reads the ids in a text file, one per line.

    Blank lines, whitespace around an id, CRLF line ends and a missing final newline are ignored.

    Args:
      path: the text file.

    Returns:
      Tuple of str, in the file's order, at least one.

    Raises:
      UserError: if the file is missing, is not Unicode text, has no ids, or has an id twice.
    """
    return parse_list(read_text(path), path)


def parse_list(text, path):
    """Parses the content of a list of ids, as `read_list`; `path` is for error messages."""
    lines = text.splitlines()
    ids = tuple(line.strip() for line in lines if line.strip())
    if not ids:
        raise UserError(f"{path}: found no ids, expected one per line")
    seen = set()
    for name in ids:
        if name in seen:
            raise UserError(f"{path}: found id {name!r} {ids.count(name)} times, expected each id once")
        seen.add(name)
    return ids


def read_text(path):
    """Reads a text file.

    Raises:
      UserError: if it is missing, or as `decode_text`.
    """
    return decode_text(read_bytes(path), path)


def read_bytes(path):
    """Reads a file. Raises UserError if it can't be read."""
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path.
        raise UserError(
            f"{path}: {getattr(error, 'strerror', None) or error}, expected a text file"
        ) from error


def decode_text(data, path):
    """Decodes UTF-8, or UTF-16 or UTF-32 with a byte-order mark.

    Other encodings are refused, since they can't be distinguished and a wrong guess would change names.

    Args:
      data: bytes.
      path: path of the file, for error messages.

    Returns:
      str, without the byte-order mark.

    Raises:
      UserError: for other bytes. The message names the line.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path} line {line}: found bytes that are no UTF-8, expected a UTF-8 text file "
            "(in Excel: save as 'CSV UTF-8')"
        ) from error
    if "\0" in text:
        raise UserError(f"{path}: found zero bytes, expected a UTF-8 text file")
    return text
