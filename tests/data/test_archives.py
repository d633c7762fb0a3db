"""Files in folders, zips and tars: the same content whatever holds them, and one line for what is broken."""

import os

import pytest

from rml_jax.data.preparation.archives import open_files
from rml_jax.utils.errors import UserError
from tests.data import archives

FILES = {"top/A/b.txt": b"one", "top/A/c.txt": b"", "top/deep/A/b.txt": b"two", "top/Größe.txt": b"three"}


def pack(tmp_path, kind):
    if kind == "folder":
        return archives.unpack(FILES, tmp_path / "folder")
    if kind == "zip":
        return archives.pack_zip(FILES | {"__MACOSX/top/A/b.txt": b"junk"}, tmp_path / "files.zip")
    return archives.pack_tar(FILES, tmp_path / f"files.{kind}")


def message_of(function, *arguments):
    with pytest.raises(UserError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_the_same_files_whatever_holds_them(tmp_path, kind):
    path = pack(tmp_path, kind)
    files = open_files(path, compressed_suffixes=(".txt",))
    assert {name: files.read(name) for name in FILES} == FILES
    assert files.names(".txt") == sorted(name.removesuffix(".txt") for name in FILES)
    for found in (files.folder("A"), files.below("b.txt")):
        assert found.names(".txt") == ["b", "c"]
        assert found.read("b.txt") == b"one"
        assert found.path("b.txt") == f"{path}/top/A/b.txt"
    assert files.folder("B") is None
    assert files.folder("op") is None
    assert files.below(".txt") is None
    assert message_of(files.read, "top/A") == f"{path}/top/A: no such file"


def test_of_compressed_archives_only_what_is_wanted_is_kept(tmp_path):
    path = pack(tmp_path, "tar.gz")
    assert open_files(path, compressed_suffixes=("e.txt",)).names("") == ["top/Größe.txt"]
    assert f"{path}: found no .png in it" in message_of(open_files, path, (".png",))


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archives_that_are_cut_off(tmp_path, kind):
    path = pack(tmp_path, kind)
    path.write_bytes(path.read_bytes()[: 700 if kind == "tar" else -40])
    assert message_of(open_files, path, (".txt",)).startswith(f"{path}: ")


def test_files_that_are_no_archives(tmp_path):
    path = tmp_path / "page.tar"
    path.write_text("<html>404</html>")
    assert message_of(open_files, path).endswith("expected a folder, a whole .zip or a whole .tar")
    assert "No such file" in message_of(open_files, tmp_path / "none.tar")


def test_damaged_files_in_archives(tmp_path):
    path = pack(tmp_path, "zip")
    path.write_bytes(path.read_bytes().replace(b"one", b"ONE"))
    files = open_files(path)
    assert message_of(files.read, "top/A/b.txt").startswith(f"{path}/top/A/b.txt: Bad CRC-32")
    folder = open_files(pack(tmp_path, "folder"))
    os.unlink(tmp_path / "folder/top/A/b.txt")
    assert "No such file" in message_of(folder.read, "top/A/b.txt")
