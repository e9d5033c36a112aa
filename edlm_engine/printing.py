"""Text for people: what a terminal may be given, and what it can show."""

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but line feed and tab


def is_terminal(stream) -> bool:
    """Whether a person looks at it. sys.stdout and sys.stderr may also be None (no descriptor 1 or 2, as in a
    daemon), closed, or any object of the host's that has a write()."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError, OSError):
        return False


def can_show(text: str, stream) -> bool:
    """Whether the stream's encoding has all characters of the text."""
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def printable(text: str, stream=None) -> str:
    r"""The text without what would move the cursor, change colours or set titles: control characters but line
    feeds and tabs become \x1b and the like, and so does what the stream's encoding lacks, if one is given.
    Line ends of other systems become line feeds."""
    text = text.replace("\r\n", "\n")
    text = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def one_line(text: str, longest: int = 1000) -> str:
    """The printable text without line feeds, its middle left out where it is longer than `longest`."""
    if len(text) > longest:
        head, tail = text[: 3 * longest // 4], text[-longest // 5 :]
        text = f"{head} [... {len(text) - len(head) - len(tail):,} characters ...] {tail}"
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def count(number: int, noun: str) -> str:
    """ "1 forward", "2 forwards"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
