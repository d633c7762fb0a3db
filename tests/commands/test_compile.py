"""The command's flags; tests/compilation has what it does."""

import pytest

from rml_jax.commands import compile as command


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--topology=h1000"], "--topology=h1000: expected one of"),
        (["--topology=h100", "--programs=train,trian"], "'trian' is no program, expected some of train,"),
        ([], "--topology"),
    ],
)
def test_wrong_flags_are_named_in_one_line(flags, complaint, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main([*flags, f"--json={tmp_path / 'result.json'}"])
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert complaint in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_not_be_written_to_is_reported_before_compiling(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        command.compilation, "open_topology", lambda name: None
    )  # its compiler may be missing
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        command.main(["--topology=h100", f"--dump={tmp_path / 'file'}"])
    assert f"--dump: {tmp_path / 'file'}: File exists, expected a folder" in capsys.readouterr().err
