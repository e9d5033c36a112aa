"""What a chat template sees of the caller's messages, tools and documents: plain JSON types, as transformers
makes them."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from ..errors import shown

# Names of a message's reasoning. Templates read the first, some the second.
REASONING = ("reasoning_content", "thinking", "reasoning")


def plain(value):
    """`value` made of dict, list, tuple, str, int, float, bool and None only.

    Mappings, dataclasses and objects with model_dump() become dicts, scalars of numpy and subclasses of
    Python's types their values; anything else becomes a text that names its type, "<Image>", since templates
    ask only whether it is there.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):  # without the methods of the subclass
            return getattr(kind, f"__{kind.__name__}__")(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [*map(plain, value)] if isinstance(value, list) else tuple(map(plain, value))
    if isinstance(value, np.generic):
        return plain(value.item())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if callable(getattr(value, "model_dump", None)):
        return plain(value.model_dump())
    return f"<{type(value).__name__}>"


def plain_of(value, where: str):
    """plain(value). Raises ValueError that names `where` for what has no end."""
    try:
        return plain(value)
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply, or contains itself") from None


def plain_messages(messages) -> list[dict]:
    """The messages of any iterable as plain dicts, without keys whose value is None. Reasoning is found under
    "reasoning_content" and "thinking", whatever its name was.

    Raises TypeError or ValueError that names messages[i].
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Iterable):
        raise TypeError(f"messages must be a list of messages, got {shown(messages)}")
    result = []
    for index, given in enumerate(messages):
        message = plain_of(given, f"messages[{index}]")
        if not isinstance(message, dict):
            raise TypeError(
                f"messages[{index}] must be a mapping with 'role' and 'content', got {shown(given)}"
            )
        message = {key: value for key, value in message.items() if value is not None}
        if "role" not in message:
            raise ValueError(f"messages[{index}] must have a 'role', got {shown(message)}")
        result.append(_with_reasoning(message))
    if not result:
        raise ValueError("messages is empty; at least one message is needed")
    return result


def _with_reasoning(message: dict) -> dict:
    reasoning = next((message[key] for key in REASONING if key in message), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def plain_dicts(values, name: str, hint: str) -> list[dict] | None:
    """tools or documents as plain dicts; None stays None. Raises TypeError that names `name`[i] and gives
    `hint`."""
    if values is None:
        return None
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a list of dicts, got {shown(values)}")
    result = []
    for index, value in enumerate(values):
        item = plain_of(value, f"{name}[{index}]")
        if not isinstance(item, dict):
            raise TypeError(f"{name}[{index}] must be {hint}, got {shown(value)}")
        result.append(item)
    return result


def mark_end(message: dict, field: str, mark: str) -> str:
    """Put `mark` behind the text of a message's field, or behind the last text of its parts, and return that
    text. Raises ValueError where there is no text."""
    value = message.get(field)
    if isinstance(value, list | tuple):
        holders = [part for part in value if isinstance(part, dict) and "text" in part][-1:]
        fields = ["text"]
    else:
        holders = [message]
        fields = [name for name in REASONING if message.get(name) == value] if field in REASONING else [field]
    text = holders[0].get(fields[0]) if holders and fields else None
    if not isinstance(text, str):
        raise ValueError(
            f"continue_final_message: the last message must have a text in {field!r}, has {shown(value)}"
        )
    for name in fields:
        holders[0][name] = text + mark
    return text
