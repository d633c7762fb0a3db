"""Files are whole or not there, and are listed once."""

import os

import pytest

from rml_jax.utils.files import atomic_write, walk


@pytest.mark.parametrize(("content", "expected"), [("été\n", "été\n".encode()), (b"\x00\xff", b"\x00\xff")])
def test_writes_text_and_bytes(tmp_path, content, expected):
    path = tmp_path / "file"
    atomic_write(path, content)
    assert path.read_bytes() == expected
    assert os.listdir(tmp_path) == ["file"]


def test_an_older_file_stays_as_it_was_where_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "file"
    atomic_write(path, "old")

    def full(self, content):
        with open(self, "wb") as file:
            file.write(content[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(path, "new and longer")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_links_to_folders_are_followed_once_and_hidden_ones_left_out(tmp_path):
    for name in ("a/1", "a/b/2", "skipped/3", ".hidden/4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    found = [
        path for _, files in walk(tmp_path, skip=[os.path.realpath(tmp_path / "skipped")]) for path in files
    ]
    assert found == [str(tmp_path / "a/1"), str(tmp_path / "a/b/2")]
