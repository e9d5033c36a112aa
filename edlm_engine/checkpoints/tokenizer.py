"""Text to token ids and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class Tokenizer(Protocol):
    """What the engine needs of a tokenizer.

    vocab_size: ids below it have a token. special: ids that are no part of decoded text, and their names.
    byte_ids: tokens that stand for single bytes, of which a character shows once all of its bytes have come.
    longest_piece: characters of the longest token.
    """

    vocab_size: int
    special: Mapping[int, str]
    byte_ids: frozenset[int]
    longest_piece: int

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """special: with the tokens that the tokenizer puts around a text. Tokens that the text spells out are
        found either way. Raises ValueError for a text that is no Unicode."""
        ...

    def decode(self, token_ids: list[int]) -> str:
        """The text of `token_ids`, special tokens skipped."""
        ...

    def piece(self, token_id: int) -> str:
        """What one token looks like on its own, special tokens by name."""
        ...


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """The folder's tokenizer; None when it has no tokenizer file (token ids in, token ids out)."""
    # Each library is loaded only where it is needed.
    if (folder / "tokenizer.model").exists() and not (folder / "tokenizer.json").exists():
        from .sentencepiece_tokenizer import SentencePieceTokenizer

        return SentencePieceTokenizer(folder / "tokenizer.model")
    from .json_tokenizer import JsonTokenizer

    if (folder / "tokenizer.json").exists():
        return JsonTokenizer.from_file(folder / "tokenizer.json")
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return JsonTokenizer.from_vocabulary(folder)
    return None
