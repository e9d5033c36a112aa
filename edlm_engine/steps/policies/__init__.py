"""Policies: which of a block's open positions a denoising step commits. One file each, found by itself.

A policy is a frozen dataclass of numbers. Where it names a native `rule` (csrc/step/commit_rule.h) the
kernels commit by it, led by host or device; `select` says the same in plain torch, as the reference. Where it
names none, `select` runs, and the host leads the steps of its requests. `to_tune`: values of its first number
that `edlm tune` tries.
"""

import importlib
import pkgutil
from dataclasses import fields

from ...errors import shown
from .policy import Policy, Statistics

BY_NAME: dict[str, type] = {}  # "entropy_bound" -> EntropyBound: the name of the file and of the text form
for _module in pkgutil.iter_modules(__path__):
    if _module.name in ("policy", "order"):
        continue
    _found = importlib.import_module(f"{__name__}.{_module.name}")
    _policy = getattr(_found, "".join(part.title() for part in _module.name.split("_")))
    BY_NAME[_module.name] = globals()[_policy.__name__] = _policy

__all__ = [
    "BY_NAME",
    "Policy",
    "Statistics",
    "describe",
    "parse",
    *(policy.__name__ for policy in BY_NAME.values()),
]


def parse(text: str) -> Policy:
    """A policy from its text form: "threshold:0.9", "schedule:8", "schedule", "threshold:0.9,max_steps=4".

    Behind the colon come the policy's numbers, in their order or by name. Raises ValueError that lists the
    known names.
    """
    name, _, numbers = text.partition(":")
    if name not in BY_NAME:
        raise ValueError(f"policy {shown(text)}: no such policy; known: {', '.join(BY_NAME)}")
    given, named = [], {}
    for number in filter(None, numbers.split(",")):
        key, is_named, value = number.rpartition("=")
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"policy {shown(text)}: {shown(number)} is no number") from None
        value = int(value) if value.is_integer() else value
        if is_named:
            named[key] = value
        else:
            given.append(value)
    try:
        return BY_NAME[name](*given, **named)
    except TypeError:
        takes = ", ".join(field.name for field in fields(BY_NAME[name]))
        raise ValueError(f"policy {shown(text)}: {name} takes {takes}") from None
    except ValueError as error:
        raise ValueError(f"policy {shown(text)}: {error}") from None


def describe(policy: Policy) -> str:
    """The text form of a policy that lies in this folder, for parse(). Raises ValueError for another one."""
    name = next((name for name, kind in BY_NAME.items() if kind is type(policy)), None)
    if name is None:
        known = ", ".join(kind.__name__ for kind in BY_NAME.values())
        raise ValueError(f"policy {shown(policy)} has no text form; the policies that have one are {known}")
    numbers = [(field.name, getattr(policy, field.name)) for field in fields(policy)]
    given = [f"{key}={_digits(value)}" for key, value in numbers if value is not None]
    if given and numbers[0][1] is not None:
        given[0] = _digits(numbers[0][1])
    return f"{name}:{','.join(given)}" if given else name


def _digits(value: float) -> str:
    """The number in as few digits as give it back."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))
