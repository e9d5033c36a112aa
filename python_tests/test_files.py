"""edlm_engine.files: outputs tried before the work, and never half written."""

import os
from pathlib import Path

import pytest

from edlm_engine.files import replace_file, try_writing


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("", IsADirectoryError, "is a folder; give the name of a file"),
        ("missing/x.json", FileNotFoundError, "there is no folder .*missing; make it first"),
        ("file/x.json", FileNotFoundError, "there is no folder .*file; make it first"),
        ("x" * 250, OSError, "cannot be written: File name too long"),  # too long once it ends in .partial
    ],
)
def test_where_nothing_can_be_written(tmp_path, name, kind, message):
    (tmp_path / "file").write_text("")
    with pytest.raises(kind, match=f"{name}: {message}"):
        try_writing(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_right_to_write(tmp_path, monkeypatch):
    """As for a user who is not root: opening is refused."""

    def refuse(path, mode):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(PermissionError, match="x: cannot be written: Permission denied"):
        try_writing(tmp_path / "x")


def test_trying_changes_nothing(tmp_path):
    path = tmp_path / "x.json"
    try_writing(path)
    assert not list(tmp_path.iterdir())
    path.write_text("old")
    (tmp_path / "x.json.partial").write_text("of another run")
    try_writing(path)
    assert path.read_text() == "old" and (tmp_path / "x.json.partial").read_text() == "of another run"


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("old")

    def fail(partial):
        partial.write_text("ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(path, fail)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x.json"]
    replace_file(path, lambda partial: partial.write_text("new"))
    assert path.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_links_stay_and_pipes_are_written_to(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there" / "x")
    try_writing(link)
    replace_file(link, lambda partial: partial.write_text("through"))
    assert link.is_symlink() and (tmp_path / "there" / "x").read_text() == "through"
    reader, writer = os.pipe()
    pipe = Path(f"/proc/self/fd/{writer}")
    try_writing(pipe)
    replace_file(pipe, lambda path: path.write_text("flows"))
    os.close(writer)
    with open(reader) as end:
        assert end.read() == "flows"
