"""SHA256SUMS of an exported folder, in the format of the program sha256sum."""

import hashlib

from rml_jax.utils.errors import UserError

SUMS = "SHA256SUMS"


def write_sums(folder, names):
    """Writes SHA256SUMS for some files of a folder (pathlib.Path)."""
    lines = [f"{_sha256(folder / name)}  {name}\n" for name in names]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def check_sums(folder, names):
    """Checks files of an exported folder against SHA256SUMS.

    Args:
      folder: pathlib.Path.
      names: of the files.

    Raises:
      UserError: if SHA256SUMS or a file is missing, a file is not listed, or its checksum differs.
    """
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        expected = {line[66:]: line[:64] for line in lines}
        found = {name: _sha256(folder / name) for name in names}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{folder}: {error}, expected an exported model with {SUMS}") from error
    for name in names:
        if name not in expected:
            raise UserError(f"{folder / SUMS}: no line for {name}, expected its checksum")
        if found[name] != expected[name]:
            raise UserError(
                f"{folder / name}: found checksum {found[name][:12]}..., expected {expected[name][:12]}...: the "
                "file was changed or cut short since its export; get or export it again"
            )


def _sha256(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
