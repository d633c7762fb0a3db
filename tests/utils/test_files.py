"""Files are whole or not there."""

import os

import pytest

from rml_jax.utils.files import atomic_write


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
