"""JSON Lines: one JSON value a line."""

import json
from collections.abc import Iterator
from pathlib import Path

_BOM = b"\xef\xbb\xbf"
_SHOWN = 60  # characters of a broken line that its error quotes


def read_json_lines(path: str | Path) -> Iterator[tuple[int, object]]:
    """(line number from 1, value) of every line of a UTF-8 file that is not blank; blank ones are counted.

    Lines end at line feeds alone: strings may hold U+2028, U+0085 and whatever else str.splitlines() takes
    for an end. A byte order mark at the beginning and carriage returns before line feeds are allowed. Raises
    ValueError that begins with "file:line: " where a line is no UTF-8 or no JSON; OSError where the file
    cannot be read.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            text = (line.removeprefix(_BOM) if number == 1 else line).rstrip(b" \t\r\n")
            if text:
                yield number, _parsed(text, f"{path}:{number}")


def _parsed(line: bytes, where: str) -> object:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: byte {error.start + 1} of the line is {line[error.start]:#04x}, which is no UTF-8"
        ) from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        reason = f"{error.msg} (column {error.colno})"
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits; a thousand brackets
        reason = str(error).partition(";")[0]
    raise ValueError(f"{where}: no valid JSON: {reason}, in {text[:_SHOWN]!r}")
