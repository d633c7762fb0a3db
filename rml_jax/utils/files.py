"""Atomic writes, checksums, a walk over the files below a folder, and file names."""

import json
import os
import re
import zlib

from rml_jax.utils.errors import UserError

_NO_UTF_8 = re.compile("[\udc80-\udcff]")  # how Python holds such bytes (os.fsdecode)


def atomic_write(path, content):
    """Writes a file atomically: under a temporary name in the same folder, which is then renamed.

    Args:
      path: pathlib.Path of the file; its folder exists.
      content: bytes, or str, which is encoded as UTF-8.

    Raises:
      OSError: if it can't be written; an existing file is then unchanged.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_file(path, content):
    """Writes a file as `atomic_write`; makes its folder first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, content)


def json_checksum(value):
    """Returns the CRC-32 of a JSON-like value; the order of the keys and the space between them do not count."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def walk(root, skip=()):
    """Lists the files below a folder. Links to folders are followed; each folder is visited once.

    Args:
      root: the folder.
      skip: resolved paths of folders to leave out.

    Yields:
      (folder, list of the paths of the files in it). Hidden folders are left out.

    Raises:
      UserError: if the folder or one in it can't be read.
    """
    seen = set(skip)
    for folder, below, files in os.walk(root, followlinks=True, onerror=_refuse):
        seen.add(os.path.realpath(folder))
        new = {os.path.realpath(os.path.join(folder, name)): name for name in sorted(below, reverse=True)}
        below[:] = sorted(name for real, name in new.items() if real not in seen and not name.startswith("."))
        seen.update(new)
        yield folder, [os.path.join(folder, name) for name in files]


def printable(path):
    """Returns a path that the system gave as text that can be encoded: bytes that are no UTF-8 become "%E9"."""
    return _NO_UTF_8.sub(lambda match: f"%{ord(match[0]) & 0xFF:02X}", path)


def _refuse(error):
    raise UserError(f"{error.filename}: {error.strerror}, expected a folder that can be read") from error
