"""Files that are either whole or not there."""


def atomic_write(path, content):
    """Writes a file under a temporary name beside it, then renames it.

    A reader, and whoever comes after a crash, sees the old file or the new one, never a part of one.

    Args:
      path: pathlib.Path of the file; its folder exists.
      content: bytes, or str, which becomes UTF-8.

    Raises:
      OSError: if it can't be written; a file that was there is unchanged then.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
