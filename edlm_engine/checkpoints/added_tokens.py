"""Tokens that a checkpoint adds to its tokenizer, and the names of its special ones."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError, shown
from .folder import read_object

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LISTS = ("extra_special_tokens", "additional_special_tokens")  # by the names of transformers 5 and 4
_FLAGS = {"special": False, "lstrip": False, "rstrip": False, "single_word": False, "normalized": True}


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token found in the text before it is cut into pieces.

    id: None where the files give none. special: no part of decoded text. lstrip, rstrip: it takes the white
    space before or behind it along. normalized: it is looked for in the normalised text.
    """

    content: str
    id: int | None = None
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = True


def tokenizer_config(folder: Path) -> dict:
    """tokenizer_config.json; empty where there is none."""
    return read_object(folder / "tokenizer_config.json")


def read_added_tokens(folder: Path) -> list[AddedToken]:
    """Tokens with ids, in their order: those of tokenizer_config.json, else those of added_tokens.json.

    Raises CheckpointError naming file and key for what is no such token.
    """
    path = folder / "tokenizer_config.json"
    table = tokenizer_config(folder).get("added_tokens_decoder")
    if table is not None:
        return sorted(_from_table(table, path), key=lambda token: token.id)
    path = folder / "added_tokens.json"
    special = {token.content for token in read_special_tokens(folder)}
    added = []
    for content, number in read_object(path).items():
        if not _is_id(number):
            raise CheckpointError(f"{path}: key {content!r} must be a token id, is {shown(number)}")
        known = content in special
        added.append(AddedToken(content, number, special=known, normalized=not known))
    return sorted(added, key=lambda token: token.id)


def read_special_tokens(folder: Path) -> list[AddedToken]:
    """Tokens that tokenizer_config.json names as special, and special_tokens_map.json where the former lists
    no added tokens; without ids, in the order in which transformers gives them ids. Raises CheckpointError
    naming file and key."""
    path = folder / "tokenizer_config.json"
    named = _named(tokenizer_config(folder), path)
    if "added_tokens_decoder" not in tokenizer_config(folder):
        path = folder / "special_tokens_map.json"
        for key, tokens in _named(read_object(path), path).items():
            named[key] = [*named.get(key, []), *tokens] if key == "extra_special_tokens" else tokens
    keys = [*(key for key in NAMES if key in named), *(key for key in named if key not in NAMES)]
    tokens = {token.content: token for key in keys for token in named[key]}
    return list(tokens.values())


def _named(config: dict, path: Path) -> dict[str, list[AddedToken]]:
    """By key: names, further keys that end in "_token", then lists."""
    single = {key: value for key, value in config.items() if key.endswith("_token") and value is not None}
    # What is no string there is a switch, as add_bos_token.
    values = {k: [v] for k, v in single.items() if k in NAMES or isinstance(v, str)}
    for key in _LISTS:
        several = config.get(key) or []
        if isinstance(several, dict):
            several = list(several.values())
        if not isinstance(several, list):
            raise CheckpointError(f"{path}: key {key!r} must be a list of tokens, is {shown(several)}")
        if several:
            values[key] = several
    named = {}
    for key, several in values.items():
        tokens = [_token(value, None, f"{path}: key {key!r}", special=True) for value in several]
        named[key] = [token for token in tokens if token.content]
    return named


def _from_table(table, path: Path) -> list[AddedToken]:
    key = "added_tokens_decoder"
    if not isinstance(table, dict):
        raise CheckpointError(f"{path}: key {key!r} must be an object of tokens by id, is {shown(table)}")
    tokens = []
    for number, value in table.items():
        if not (len(number) < 12 and number.isascii() and number.isdigit() and _is_id(int(number))):
            raise CheckpointError(f"{path}: key '{key}.{shown(number)[1:-1]}' must be a token id")
        tokens.append(_token(value, int(number), f"{path}: key '{key}.{number}'"))
    return tokens


def _token(value, number: int | None, where: str, special: bool = False) -> AddedToken:
    if isinstance(value, str):
        return AddedToken(value, number, special=special, normalized=not special)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise CheckpointError(f"{where} must be a string or an object with 'content', is {shown(value)}")
    flags = {}
    for name, default in _FLAGS.items():
        flags[name] = value.get(name, default)
        if not isinstance(flags[name], bool):
            raise CheckpointError(f"{where}: {name!r} must be true or false, is {shown(flags[name])}")
    if special:
        flags["special"] = True
    return AddedToken(value["content"], number, **flags)


def _is_id(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
