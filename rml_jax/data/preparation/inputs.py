"""Finds a published data set's files: unpacked or in archives in a folder, or downloaded."""

from pathlib import Path

import tensorflow_datasets as tfds
from requests import exceptions
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from rml_jax.data.preparation.archives import open_files
from rml_jax.utils.errors import UserError


class Inputs:
    """The files in the manual folder, and downloads.

    Attributes:
      unpacked: Files of the manual folder, archives among them unopened.

    Args:
      manual_dir: folder with the data set's archives, or with what was unpacked from them.
      dl_manager: tfds.download.DownloadManager; None if nothing may be downloaded.

    Raises:
      UserError: if the folder can't be read.
    """

    def __init__(self, manual_dir, dl_manager):
        self._folder, self._dl_manager = Path(manual_dir), dl_manager
        if not self._folder.is_dir():
            raise UserError(f"--manual_dir={manual_dir}: no such folder")
        self.unpacked = open_files(self._folder)

    def find(self, look, *patterns, url="", compressed_suffixes=()):
        """Searches the unpacked files, then archives, then a download.

        Args:
          look: function of Files that returns what it finds in them, or None.
          patterns: names of archives in the manual folder.
          url: of the archive, "" for none. TFDS checks its SHA-256 (checksums.tsv).
          compressed_suffixes: see `open_files`.

        Returns:
          The first thing found, or None.

        Raises:
          UserError: if an archive is damaged, or a download fails or has another checksum.
        """
        for files in self._places(patterns, url, compressed_suffixes):
            if (found := look(files)) is not None:
                return found
        return None

    def _places(self, patterns, url, compressed_suffixes):
        yield self.unpacked
        for path in (path for pattern in patterns for path in sorted(self._folder.glob(pattern))):
            if path.is_file():
                yield open_files(path, compressed_suffixes)
        if url and self._dl_manager is not None:
            yield open_files(self._download(url))

    def _download(self, url):
        try:
            return self._dl_manager.download(url)
        except NonMatchingChecksumError as error:
            raise UserError(f"{url}: {error}") from error
        except (OSError, exceptions.RequestException, tfds.download.DownloadError) as error:
            raise UserError(f"{url}: {error}; expected a network, or the file in --manual_dir") from error
