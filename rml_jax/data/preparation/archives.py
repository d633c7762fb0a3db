"""Files by name in a folder, a zip or a tar archive, read without unpacking."""

import dataclasses
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from rml_jax.utils.errors import UserError
from rml_jax.utils.files import walk
from rml_jax.utils.progress import Progress

# Raised by the archive readers for a file that is not an archive, truncated, damaged or encrypted.
_ARCHIVE_ERRORS = (OSError, EOFError, RuntimeError, tarfile.TarError, zipfile.BadZipFile, zlib.error)


@dataclasses.dataclass(frozen=True)
class Files:
    """Read-only files by their path below a folder or in an archive. Several threads may read at once.

    Attributes:
      where: the folder or archive, for messages.
    """

    where: str
    _entries: dict[str, object]
    _read: Callable[[object], bytes]

    def __contains__(self, name):
        return name in self._entries

    def names(self, suffix):
        """Returns the names that end in `suffix`, without it, sorted."""
        return sorted(name.removesuffix(suffix) for name in self._entries if name.endswith(suffix))

    def path(self, name):
        """Returns the path of a file, for messages."""
        return f"{self.where}/{name}"

    def read(self, name):
        """Reads a file: bytes.

        Raises:
          UserError: if it doesn't exist or can't be read.
        """
        if name not in self._entries:
            raise UserError(f"{self.path(name)}: no such file")
        try:
            return self._read(self._entries[name])
        except _ARCHIVE_ERRORS as error:
            raise UserError(f"{self.path(name)}: {error}, expected a file that can be read") from error

    def below(self, marker):
        """Finds the folder that holds a certain file, at any depth.

        Args:
          marker: path of the file below that folder, such as "ImageSets/Segmentation/val.txt".

        Returns:
          Files of the folder with the shortest path, or None.
        """
        found = [name.removesuffix(marker) for name in self._entries if f"/{name}".endswith(f"/{marker}")]
        return self._within(min(found, key=len)) if found else None

    def folder(self, name):
        """Finds a folder by name: Files of the one with the shortest path, or None."""
        found = {
            path[: place + len(name) + 1]
            for path in self._entries
            if (place := f"/{path}".find(f"/{name}/")) >= 0
        }
        return self._within(min(found, key=len)) if found else None

    def _within(self, prefix):
        entries = {
            name.removeprefix(prefix): entry
            for name, entry in self._entries.items()
            if name.startswith(prefix)
        }
        return Files(self.path(prefix).rstrip("/"), entries, self._read)


def open_files(path, compressed_suffixes=()):
    """Opens a folder or archive.

    Args:
      path: folder, .zip or .tar. A compressed .tar has no random access: its files are read into memory.
      compressed_suffixes: suffixes of the files to read from a compressed .tar.

    Returns:
      Files. The archive stays open until the process ends.

    Raises:
      UserError: if it is missing, damaged, or a compressed .tar without such files.
    """
    path = Path(path)
    try:
        if path.is_dir():
            names = (os.path.relpath(name, path) for folder, files in walk(path) for name in files)
            return Files(str(path), {Path(name).as_posix(): path / name for name in names}, Path.read_bytes)
        if zipfile.is_zipfile(path):
            archive = zipfile.ZipFile(path)
            entries = {entry.filename: entry for entry in archive.infolist() if _is_content(entry)}
            return Files(str(path), entries, archive.read)
        return _open_tar(path, compressed_suffixes)
    except _ARCHIVE_ERRORS as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: {reason}, expected a folder, a whole .zip or a whole .tar") from error


def _open_tar(path, compressed_suffixes):
    try:
        with tarfile.open(path, "r:") as archive:
            members = archive.getmembers()
    except tarfile.ReadError:
        return Files(str(path), _read_compressed(path, compressed_suffixes), lambda data: data)
    descriptor = os.open(path, os.O_RDONLY)
    entries = {
        member.name.removeprefix("./"): (member.offset_data, member.size)
        for member in members
        if member.isfile()
    }
    return Files(str(path), entries, lambda place: _read_part(descriptor, *place))


def _is_content(entry):
    """Returns whether an entry of a zip is a file that macOS did not add."""
    return not entry.is_dir() and not entry.filename.startswith("__MACOSX/")


def _read_part(descriptor, offset, size):
    data = os.pread(descriptor, size, offset)
    if len(data) < size:
        raise EOFError("the archive is cut off")
    return data


def _read_compressed(path, suffixes):
    """Reads the files whose names end in one of the suffixes: a dict from name to bytes."""
    entries = {}
    megabytes = max(1, path.stat().st_size >> 20)
    progress = Progress(f"reading {path.name}", megabytes, "MB")
    with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r|*") as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(tuple(suffixes)):
                entries[member.name.removeprefix("./")] = archive.extractfile(member).read()
            progress.update(min(file.tell() >> 20, megabytes - 1))
    progress.update(megabytes)
    if not entries:
        raise UserError(
            f"{path}: found no {' or '.join(suffixes) or 'file'} in it; unpack compressed archives"
        )
    return entries
