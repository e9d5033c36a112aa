"""Copies of a tokenizer's files, and folders that may be written."""

import os

import pytest

from edlm_engine.convert.files import TOKENIZER_FILES, check_output, copy_tokenizer


def test_the_tokenizers_files_are_copied(tmp_path):
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.mkdir()
    folder.mkdir()
    for name in TOKENIZER_FILES[1:]:
        (source / name).write_text(name)
    (source / "model.safetensors").write_text("")
    copy_tokenizer(source, folder)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {n: n for n in TOKENIZER_FILES[1:]}
    before = [path.stat().st_ino for path in sorted(folder.iterdir())]
    copy_tokenizer(folder, folder)  # onto themselves: they stay
    assert [path.stat().st_ino for path in sorted(folder.iterdir())] == before


def test_new_and_empty_folders_will_do(tmp_path):
    check_output(tmp_path / "a" / "b", ())
    assert not (tmp_path / "a" / "b").exists()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".DS_Store").write_text("")
    check_output(tmp_path / "empty", ())
    assert os.listdir(tmp_path / "empty") == [".DS_Store"]


def test_files_of_our_own_will_do_and_others_are_named(tmp_path):
    for name in ("resume.pt", "model.safetensors.partial"):
        (tmp_path / name).write_text("")
    check_output(tmp_path, ("resume.pt", "model.safetensors"))
    assert sorted(os.listdir(tmp_path)) == ["model.safetensors.partial", "resume.pt"]
    with pytest.raises(FileExistsError, match=r"holds 'resume\.pt', from no stopped run"):
        check_output(tmp_path, ("model.safetensors",))
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).write_text("")
    with pytest.raises(FileExistsError, match=r"holds 'a\.txt' and 1 more, from no stopped run"):
        check_output(tmp_path, ("resume.pt", "model.safetensors"))


def test_what_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file is a file; choose a folder"):
        check_output(tmp_path / "file", ())
    with pytest.raises(NotADirectoryError, match="below: cannot be written to: Not a directory"):
        check_output(tmp_path / "file" / "below", ())
    monkeypatch.setattr(
        "pathlib.Path.write_bytes", lambda *_: (_ for _ in ()).throw(PermissionError(13, "No"))
    )
    with pytest.raises(PermissionError, match="out: cannot be written to: No"):
        check_output(tmp_path / "out", ())
