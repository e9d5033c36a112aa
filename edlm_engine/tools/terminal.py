"""The command line's streams: any encoding, readers that go away, prompts from outside."""

import codecs
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from rich.console import Console
from rich.markup import escape

from ..printing import one_line


def run_command(command: Callable[[], object]) -> NoReturn:
    """Call it and end the process, with its exit code: characters that an output lacks are written as
    \\uXXXX, expected errors become one line on standard error and exit code 1, and a reader that has gone, as
    head does, ends it quietly."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")
    code: int | str | None = 0
    try:
        command()
    except SystemExit as end:
        code = end.code
    except BrokenPipeError:
        code = 1
    except KeyboardInterrupt:
        code = 130
    except (ValueError, TypeError, RuntimeError, OSError, ImportError, MemoryError) as error:
        code = 1
        _print_error(_sentence(error))
    sys.exit(_flush() or code)


def _flush() -> int:
    """Give out what is left. 1 if standard output cannot take it: the disk is full, or the reader has gone,
    of whom nothing is said."""
    failed = 0
    for stream in (sys.stdout, sys.stderr):
        try:
            if hasattr(stream, "flush"):
                stream.flush()
        except OSError as error:
            if stream is sys.stdout:
                failed = 1
                if not isinstance(error, BrokenPipeError):
                    _print_error(f"standard output: {error.strerror}")
            _let_go(stream)
    return failed


def _let_go(stream):
    """Python flushes its streams once more at the end, and would complain again."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(text: str, style: str = "") -> None:
    """A line on standard error; nobody able to read it is no reason to fail. text: with rich's markup."""
    with suppress(OSError, ValueError, AttributeError):  # closed, or a host's object that can little
        Console(stderr=True, highlight=False).print(text, style=style, soft_wrap=True)


def _print_error(message: str):
    say(f"[bold red]error:[/bold red] {escape(one_line(message))}")


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def read_prompt(argument: str) -> str:
    """The prompt that an argument gives, or for "-" standard input, without the line end that echo and
    editors put at its end. Raises ValueError for bytes that are no UTF-8."""
    if argument != "-":
        return unicode_argument("the prompt", argument)
    if sys.stdin is None:
        raise ValueError("standard input is closed; give the prompt as an argument, or pipe it in")
    try:
        text = _decoded(sys.stdin.buffer.read()) if hasattr(sys.stdin, "buffer") else sys.stdin.read()
    except UnicodeDecodeError as error:
        found = f"byte {error.start + 1} is {error.object[error.start]:#04x}"
        raise ValueError(
            f"standard input is no {error.encoding.upper()}: {found}; convert it first"
        ) from None
    return text.removesuffix("\n")


def _decoded(data: bytes) -> str:
    """In the encoding of standard input, of which ASCII is a part of UTF-8; line ends become line feeds."""
    encoding = codecs.lookup(sys.stdin.encoding).name
    if encoding in ("ascii", "utf-8"):
        encoding = "utf-8-sig"
    return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def unicode_argument(name: str, text: str) -> str:
    """An argument as the bytes that were given mean it in UTF-8, whatever the locale. Raises ValueError."""
    if not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    try:
        return os.fsencode(text).decode()
    except UnicodeError as error:
        found = f"byte {error.start + 1} is {error.object[error.start : error.start + 1]!r}"
        raise ValueError(f"{name} is no UTF-8: {found}; convert it first") from None
