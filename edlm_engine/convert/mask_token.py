"""The mask token of a conversion: the one that the base has, or a new one in its tokenizer and embedding."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import tokenizers
from sentencepiece import SentencePieceProcessor

from edlm_engine.checkpoints.added_tokens import read_added_tokens, tokenizer_config
from edlm_engine.checkpoints.checkpoint import Checkpoint
from edlm_engine.checkpoints.folder import read_json
from edlm_engine.checkpoints.tokenizer import load_tokenizer
from edlm_engine.convert.files import copy_tokenizer
from edlm_engine.errors import CheckpointError
from edlm_engine.files import replace_file

NAME = "<|mask|>"  # of a new one, and looked for where no file names another


@dataclass(frozen=True)
class MaskToken:
    """`text`: None if the tokenizer has no such token, or none is known. `new`: it has to be added."""

    id: int
    text: str | None = None
    new: bool = False


def choose_mask(checkpoint: Checkpoint, asked: int | None) -> MaskToken:
    """The mask token: the id `asked` for, config.json's, the tokenizer's, or a new one.

    A new one takes the id behind all tokens, which is an unused row of the embedding where those are padded,
    and else a row to be added. Raises ValueError for an id outside of the vocabulary.
    """
    vocabulary = checkpoint.model.vocab_size
    for given in (asked, checkpoint.decoding.mask_token_id):
        if given is None:
            continue
        if not isinstance(given, int) or isinstance(given, bool) or not 0 <= given < vocabulary:
            raise ValueError(f"mask_token_id {given!r} is outside the vocabulary of {vocabulary}")
        return MaskToken(given)
    folder = checkpoint.folder
    tokens = known_tokens(folder)
    text = named_mask(folder) or NAME
    if not tokens:  # the data are token ids, and no id can be told to be unused
        return MaskToken(vocabulary, None, new=True)
    found = tokens.get(text)
    if found is not None and 0 <= found < vocabulary:
        return MaskToken(found, text)
    wanted = next_id(folder, tokens, text) if found is None else found
    if not 0 <= wanted <= max(vocabulary, len(tokens)):
        raise ValueError(
            f"{folder}: {text!r} would get the id {wanted}, far outside the vocabulary of {vocabulary}; pass "
            "mask_token_id, an existing id that is unused"
        )
    mask = MaskToken(wanted, text, new=True)
    check_addable(folder, mask)
    return mask


def named_mask(folder: Path) -> str | None:
    """The mask token that tokenizer_config.json or special_tokens_map.json names."""
    path = folder / "special_tokens_map.json"
    for config in (tokenizer_config(folder), read_json(path) if path.is_file() else {}):
        token = config.get("mask_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and token:
            return token
    return None


def known_tokens(folder: Path) -> dict[str, int]:
    """Every token of the tokenizer's files with its id; empty without a tokenizer."""
    if load_tokenizer(folder) is None:  # which raises for files that cannot be used
        return {}
    tokens: dict[str, int] = {}
    if (folder / "tokenizer.json").is_file():
        tokens |= json_tokenizer(folder).get_vocab(with_added_tokens=True)
    elif (folder / "tokenizer.model").is_file():
        processor = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        tokens |= {processor.id_to_piece(i): i for i in range(processor.vocab_size())}
    else:
        tokens |= read_json(folder / "vocab.json")
    return tokens | {token.content: token.id for token in read_added_tokens(folder)}


def json_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def next_id(folder: Path, tokens: dict[str, int], text: str) -> int:
    """The id of one token more: what the tokenizers library would give it, or if another file gave that one
    away, the one behind all."""
    number = id_in_json(folder, text)
    return max(tokens.values()) + 1 if number in (None, *tokens.values()) else number


def id_in_json(folder: Path, text: str) -> int | None:
    """The id of a special token once it is added to tokenizer.json, which does not let one choose; None
    without the file."""
    if not (folder / "tokenizer.json").is_file():
        return None
    tokenizer = json_tokenizer(folder)
    tokenizer.add_special_tokens([text])
    return tokenizer.token_to_id(text)


def check_addable(folder: Path, mask: MaskToken) -> None:
    """Raise ValueError unless a copy of the tokenizer in `folder` gives a new `mask` token its id."""
    with TemporaryDirectory() as name:
        copy = Path(name)
        copy_tokenizer(folder, copy)
        add_to_tokenizer(copy, mask)
        try:
            found = load_tokenizer(copy).special.get(mask.id)
        except CheckpointError:
            found = None
    if found != mask.text:
        raise ValueError(
            f"{folder}: its token ids have gaps, so that {mask.text!r} cannot be added with the id {mask.id}"
            "; pass mask_token_id, an existing id that is unused"
        )


def add_to_tokenizer(folder: Path, mask: MaskToken) -> None:
    """Add a new mask token to the tokenizer files of `folder`, where transformers looks for it."""
    entry = {
        "content": mask.text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
        "special": True,
    }  # fmt: skip
    in_json = id_in_json(folder, mask.text) == mask.id
    if in_json:
        tokenizer = read_json(folder / "tokenizer.json")
        others = [token for token in tokenizer.get("added_tokens") or [] if token["content"] != mask.text]
        tokenizer["added_tokens"] = [*others, {"id": mask.id, **entry}]
        write_json(folder / "tokenizer.json", tokenizer)
    config = tokenizer_config(folder) | {"mask_token": mask.text}
    listed = config.get("added_tokens_decoder")
    if listed is not None:
        config["added_tokens_decoder"] = listed | {str(mask.id): entry}
    elif not in_json:
        path = folder / "added_tokens.json"
        write_json(path, (read_json(path) if path.is_file() else {}) | {mask.text: mask.id})
    write_json(folder / "tokenizer_config.json", config)


def write_json(path: Path, content: dict) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
