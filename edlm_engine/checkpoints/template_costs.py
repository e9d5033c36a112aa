"""What an operation of a chat template may cost, estimated before it runs.

Costs are in characters: an item of a list counts as many as its pointer and object take. An operation whose
result may be far larger than what went in (`'a'.center(10**9)`), or whose time may (`dict.fromkeys` of
numbers with one hash), is paid for before it begins.
"""

import re
from collections.abc import MappingView

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

ITEM = 8  # characters that an item of a list counts
LONG = 16  # characters that an item counts that is made anew, as by split()
MAX_BITS = 1 << 14  # of an integer: about what Python agrees to print
SMALL = 1 << 16  # characters that a filter takes whose time may grow faster than its input

_CONTAINERS = (dict, list, tuple, set, frozenset, MappingView)
_CODECS = {"utf8", "utf16", "utf32", "ascii", "latin1"}  # others, as punycode, take quadratic time
_PERCENT = re.compile(r"%(?:\([^)]*\))?[-#0 +]*(\*|\d*)(?:\.(\*|\d*))?")


def weigh(value, most: int) -> int:
    """Characters that `value` has when it is written out, with what it contains, counted again wherever it is
    contained again: a list of two lists of two lists … is small in memory and endless on paper. Raises
    SecurityError above `most`."""
    total, left = 0, [value]
    while left:
        item = left.pop()
        if isinstance(item, Namespace):
            item = object.__getattribute__(item, "_Namespace__attrs")
        if isinstance(item, str | bytes):
            total += len(item)
        elif isinstance(item, range):
            total += LONG * len(item)
        elif isinstance(item, _CONTAINERS):
            total += LONG * (4 + len(item))
            refuse_above(most, total)
            left.extend(item)
            if isinstance(item, dict):
                left.extend(item.values())
        else:
            total += LONG
    refuse_above(most, total)
    return total


def refuse_above(most: int, cost: int):
    if cost > most:
        raise SecurityError("it builds or compares more than the sandbox allows")


def is_container(value) -> bool:
    return isinstance(value, (*_CONTAINERS, range, Namespace))


def size(value) -> int:
    """Characters of a text, or what the items of a container count, without what they contain."""
    if isinstance(value, str | bytes):
        return len(value)
    return ITEM * len(value) if isinstance(value, dict | list | tuple) else 0


def operator_cost(operator: str, left, right, most: int) -> int:
    """Of `left operator right`."""
    if isinstance(left, int) and isinstance(right, int):
        _check_integers(operator, left, right)
        return 0
    if operator == "+":
        return size(left) + size(right)
    if operator == "*":
        number, sequence = (left, right) if isinstance(left, int) else (right, left)
        return max(number, 0) * size(sequence) if isinstance(number, int) else 0
    if operator == "%" and isinstance(left, str | bytes):
        return percent_cost(left, right, most)
    return 0


def _check_integers(operator: str, left: int, right: int):
    bits = {"**": left.bit_length() * max(right, 1), "*": left.bit_length() + right.bit_length()}
    if max(bits.get(operator, 0), left.bit_length(), right.bit_length()) > MAX_BITS:
        raise SecurityError(f"an integer of '{operator}' has more than {MAX_BITS} bits")


def percent_cost(template: str | bytes, values, most: int) -> int:
    """Of `template % values`."""
    specs = _PERCENT.findall(template if isinstance(template, str) else template.decode("latin-1"))
    numbers = [number for spec in specs for number in spec]
    if "*" in numbers:
        raise SecurityError("the width of a '%' format must be a number")
    return len(template) + len(specs) * weigh(values, most) + sum(map(number_of, numbers))


def number_of(digits: str) -> int:
    """The integer that `digits` spell, cut where it is absurd anyway; 0 for none."""
    return int(digits[:12] or 0)


def format_spec_cost(spec: str) -> int:
    """Of formatting one value by `spec`, as "{:>20}" does."""
    return sum(map(number_of, re.findall(r"\d+", spec)))


def method_cost(name: str, owner, args: tuple, most: int) -> int:
    """Of `owner.name(*args)`, a method of a str, bytes, int, or of dict."""
    numbers = [abs(arg) for arg in args if isinstance(arg, int)]
    texts = [len(arg) for arg in args if isinstance(arg, str | bytes)]
    number, text = max(numbers, default=0), max(texts, default=0)
    if isinstance(owner, int):
        return number if name == "to_bytes" else 0
    if not isinstance(owner, str | bytes):  # dict.fromkeys: keys of one hash take quadratic time
        return len(args[0]) ** 2 if name == "fromkeys" and hasattr(args[0], "__len__") else 0
    length = len(owner)
    if name in ("center", "ljust", "rjust", "zfill"):
        return number
    if name == "expandtabs":
        return length + owner.count("\t" if isinstance(owner, str) else b"\t") * (number if numbers else 8)
    if name == "replace" and len(args) > 1 and texts:
        return length + owner.count(args[0]) * len(args[1])
    if name == "join" and args:
        return length * len(args[0]) + weigh(args[0], most)
    if name == "translate" and args and isinstance(args[0], dict):
        return length * (1 + max((size(value) for value in args[0].values()), default=0))
    if name in ("split", "rsplit"):
        pieces = owner.count(args[0]) if texts and args[0] else length // 2
        return LONG * pieces + length * text // 64
    if name == "splitlines":
        return LONG * length
    if name in (
        "rfind",
        "rindex",
        "rpartition",
        "strip",
        "lstrip",
        "rstrip",
    ):  # their worst case is quadratic
        return length * text // 64
    if name in ("encode", "decode") and texts:
        _check_codec(args)
    if name in ("striptags", "unescape"):
        refuse_above(SMALL, length)
    return 0


def _check_codec(args):
    codec = next(arg for arg in args if isinstance(arg, str | bytes))
    if str(codec).lower().replace("-", "").replace("_", "") not in _CODECS:
        raise SecurityError(f"the encoding {codec!r:.40} is not one of the sandbox's")


# Filters that look at a container without what its items contain.
_SHALLOW = {
    *("attr", "batch", "count", "d", "default", "first", "items", "last", "length", "list", "map", "random"),
    *("reject", "rejectattr", "reverse", "select", "selectattr", "slice", "tojson"),
}
# Filters that take all items of an iterator at once.
CONSUMING = {"batch", "dictsort", "groupby", "join", "list", "max", "min", "slice", "sort", "sum", "unique"}
_SLOW = {"pprint", "striptags", "urlize", "wordwrap", "xmlattr"}


def filter_cost(name: str, value, args: tuple, most: int) -> int:
    """Of `value|name(*args)`; named arguments count as any."""
    numbers = [abs(arg) for arg in args if isinstance(arg, int)]
    number = max(numbers, default=0)
    text = max((len(arg) for arg in args if isinstance(arg, str)), default=0)
    if name in _SHALLOW:
        makes_list = name in CONSUMING and isinstance(value, str)
        return (LONG * len(value) if makes_list else 0) + (LONG * number if name in ("batch", "slice") else 0)
    weight = weigh(value, most)
    if name in _SLOW:
        refuse_above(SMALL, weight + text)
        return weight * (1 + text)
    if name == "center":
        return weight + number
    if name == "indent":
        return weight + (1 + weight) * max(number, text)
    if name == "replace" and len(args) > 1:
        return weight + str(value).count(str(args[0])) * len(str(args[1]))
    if name == "join":
        return weight + text * len(value) if hasattr(value, "__len__") else weight
    if name == "format":
        return percent_cost(str(value), args, most)
    if name == "trim":
        return weight + weight * text // 64
    if name == "round" and number > 400:
        raise SecurityError(f"a precision of {number} is beyond every float")
    if name in ("sum", "unique"):  # adding lists, and keys of one hash, take quadratic time
        return weight * (weight // 64 if is_container(value) and not _plain_sum(name, value) else 1)
    return weight * 12 if name in ("urlencode", "e", "escape", "forceescape") else weight


def _plain_sum(name: str, value) -> bool:
    return len(value) < 256 or (name == "sum" and not any(is_container(item) for item in value))
