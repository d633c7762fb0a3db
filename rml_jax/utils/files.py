"""Atomic writes."""


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
