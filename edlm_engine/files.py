"""Output files: tried before the work that fills them, never half written."""

import os
from collections.abc import Callable
from os.path import exists, isdir, isfile, realpath
from pathlib import Path


def try_writing(path: Path) -> None:
    """Raise unless a file can be written to `path`, and leave everything as it was: for what would be found
    out only after long work.

    Raises IsADirectoryError, FileNotFoundError where the folder is missing, or another OSError; the message
    names the path.
    """
    if isdir(path):
        raise IsADirectoryError(f"{path}: is a folder; give the name of a file")
    target = Path(realpath(path))
    if not isdir(target.parent):
        raise FileNotFoundError(f"{path}: there is no folder {target.parent}; make it first")
    try:
        if isfile(path):
            path.open("ab").close()
        if not _is_special(path):
            was_there = exists(_partial(path))
            _partial(path).open("ab").close()
            if not was_there:
                _partial(path).unlink()
    except OSError as error:
        raise type(error)(f"{path}: cannot be written: {error.strerror}") from error


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Call write(temporary path), then rename it to `path`, so that `path` is never half written.

    A link stays, and the file that it leads to is replaced. Devices and pipes, say /dev/stdout, are written
    to as they are.
    """
    if _is_special(path):
        write(path)
        return
    partial = _partial(path)
    try:
        write(partial)
        os.replace(partial, realpath(path))
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _partial(path: Path) -> Path:
    """Beside the file, since a rename does not cross file systems."""
    target = Path(realpath(path))
    return target.with_name(f"{target.name}.partial")


def _is_special(path: Path) -> bool:
    return exists(path) and not isfile(path)
