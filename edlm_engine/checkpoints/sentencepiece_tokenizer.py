"""tokenizer.model, through sentencepiece."""

import re
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import sentencepiece

from ..errors import CheckpointError, shown
from .added_tokens import AddedToken, read_added_tokens, read_special_tokens, tokenizer_config
from .folder import first_line, read_bytes
from .text import check_text

# A message of the protocol buffer that is put behind the model's own and wins over it: field 3, the
# normaliser, with its fields 3 (add_dummy_prefix) and 4 (remove_extra_whitespaces) off.
_NO_PREFIX = b"\x1a\x04\x18\x00\x20\x00"
_SPACE = "\u2581"


class SentencePieceTokenizer:
    """A sentencepiece model with added tokens.

    Added tokens (added_tokens.json, tokenizer_config.json) are looked for first; what lies between them is
    cut into pieces, with a space in front where tokenizer_config.json's `legacy` says so or the text begins
    (unless its `add_prefix_space` is false).
    bos and eos as its add_bos_token and add_eos_token say.
    """

    def __init__(self, path: Path):
        config = tokenizer_config(path.parent)
        data = read_bytes(path)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=data)
            self._within = sentencepiece.SentencePieceProcessor(model_proto=data + _NO_PREFIX)
            pieces = [self._processor.id_to_piece(i) for i in range(self._processor.vocab_size())]
        except (RuntimeError, UnicodeDecodeError) as error:  # the library does not look at the pieces' bytes
            raise CheckpointError(
                f"{path}: cannot be read as a sentencepiece model: {first_line(error)}"
            ) from error
        self._pieces = len(pieces)
        llama = str(config.get("tokenizer_class", "")).startswith("LlamaTokenizer")
        self._legacy = bool(config.get("legacy", not llama))
        if config.get("add_prefix_space") is False and not self._legacy:
            self._processor = self._within
        processor = self._processor
        self._bos = [processor.bos_id()] if config.get("add_bos_token") and processor.bos_id() >= 0 else []
        self._eos = [processor.eos_id()] if config.get("add_eos_token") and processor.eos_id() >= 0 else []
        self._added = self._place(read_added_tokens(path.parent), read_special_tokens(path.parent), path)
        self._of_id = {token.id: token for token in self._added.values()}
        self._split = _finder(list(self._added.values()))
        self.vocab_size = max([self._pieces, *(number + 1 for number in self._of_id)])
        controls = {i: piece for i, piece in enumerate(pieces) if processor.is_control(i)}
        self.special = controls | {t.id: t.content for t in self._of_id.values() if t.special}
        self.byte_ids = frozenset(i for i in range(self._pieces) if processor.is_byte(i))
        self.longest_piece = max([len(piece) for piece in pieces] + [len(content) for content in self._added])

    def _place(self, added: list[AddedToken], special: list[AddedToken], path: Path) -> dict[str, AddedToken]:
        """Added tokens by content, each with its id."""
        unknown = self._processor.unk_id()
        placed: dict[str, AddedToken] = {}
        for token in [*added, *(t for t in special if t.content not in {a.content for a in added})]:
            if token.id is None:
                number = self._processor.piece_to_id(token.content)
                if number == unknown and token.content != self._processor.id_to_piece(unknown):
                    number = (
                        max([self._pieces - 1, *(t.id for t in placed.values())]) + 1
                    )  # the next free one
                token = replace(token, id=number)
            elif token.id < self._pieces and self._processor.id_to_piece(token.id) != token.content:
                piece = self._processor.id_to_piece(token.id)
                raise CheckpointError(
                    f"{path}: token {token.id} is {piece!r}, in the files beside it {shown(token.content)}"
                )
            placed[token.content] = token
        return placed

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        check_text(text)
        ids: list[int] = []
        begins = True
        for i, part in enumerate(self._split.split(text) if self._split else [text]):
            if i % 2:  # between two texts lies what the pattern found
                ids.append((self._added.get(part) or self._added[part.strip()]).id)
            elif part:
                prefixed = begins or self._legacy
                ids += (self._processor if prefixed else self._within).encode(part)
            begins = begins and not part
        return [*self._bos, *ids, *self._eos] if special else ids

    def decode(self, token_ids: list[int]) -> str:
        shown = [i for i in token_ids if i not in self.special and (i < self._pieces or i in self._of_id)]
        text: list[str] = []
        for added, group in groupby(shown, key=self._of_id.__contains__):
            if added:
                text += [self._of_id[i].content for i in group]
            else:
                text.append((self._within if text else self._processor).decode(list(group)))
        return "".join(text)

    def piece(self, token_id: int) -> str:
        if token_id in self._of_id:
            return self._of_id[token_id].content
        known = 0 <= token_id < self._pieces
        return self._processor.id_to_piece(token_id).replace(_SPACE, " ") if known else ""


def _finder(tokens: list[AddedToken]) -> re.Pattern | None:
    """What splits a text at the added tokens, which stay as parts; the longest wins where several fit."""
    if not tokens:
        return None
    longest_first = sorted(tokens, key=lambda token: -len(token.content))
    patterns = []
    for token in longest_first:
        pattern = re.escape(token.content)
        if token.single_word:  # no \b: many tokens do not begin or end with a letter
            pattern = rf"(?<!\w){pattern}(?!\w)"
        patterns.append(r"\s*" * token.lstrip + pattern + r"\s*" * token.rstrip)
    return re.compile(f"({'|'.join(patterns)})")
