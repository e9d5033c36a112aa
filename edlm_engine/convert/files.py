"""The tokenizer's files, and folders to write that are nobody else's."""

from __future__ import annotations

import shutil
from collections.abc import Container
from pathlib import Path

from edlm_engine.files import replace_file

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer files that `source` has."""
    for name in TOKENIZER_FILES:
        file = source / name
        if file.is_file() and file.resolve() != (folder / name).resolve():
            replace_file(folder / name, lambda path, file=file: shutil.copyfile(file, path))


def check_output(folder: Path, ours: Container[str]) -> None:
    """Raise an OSError naming `folder` unless it can be written: it is new, empty, or holds nothing but files
    called `ours`, finished or not.

    Names with a leading dot are the system's and do not count. What forbids writing is tried out; a folder
    that was made for it is removed again.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; choose a folder to write the checkpoint to")
    new = not folder.exists()
    names = [] if new else sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if foreign := [name for name in names if name.removesuffix(".partial") not in ours]:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise FileExistsError(
            f"{folder} holds {foreign[0]!r}{more}, from no stopped run; choose a new or an empty folder"
        )
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
        if new:
            folder.rmdir()
    except OSError as error:
        raise type(error)(f"{folder}: cannot be written to: {error.strerror or error}") from error
