"""tokenizer.json, or vocab.json and merges.txt, through the tokenizers library."""

import base64
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from ..errors import CheckpointError, shown
from .added_tokens import AddedToken, read_added_tokens, read_special_tokens, tokenizer_config
from .folder import first_line, read_json, read_text
from .text import check_text

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# From so many characters on, encoding lets other Python threads run.
_LONG = 1 << 14
# How text is cut before byte pairs are merged; what a slow tokenizer's class stands for.
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN, _GPT2 = ("Qwen2Tokenizer", "DreamTokenizer", "Fast_dLLM_QwenTokenizer"), ("GPT2Tokenizer",)


class JsonTokenizer:
    """A tokenizer of the tokenizers library, with what the folder's other files add to it.

    Raises CheckpointError naming the file that cannot be used. What the library does with hostile files and
    texts (panics) ends as ValueError.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, folder: Path):
        self._tokenizer = tokenizer
        # training-time settings that a tokenizer.json may carry would cut or fill up prompts
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = bool(tokenizer_config(folder).get("split_special_tokens", False))
        self._add(read_added_tokens(folder), read_special_tokens(folder), folder)
        self.vocab_size = tokenizer.get_vocab_size()
        added = tokenizer.get_added_tokens_decoder()
        self.special = {number: token.content for number, token in added.items() if token.special}

    @classmethod
    def from_file(cls, path: Path) -> "JsonTokenizer":
        """tokenizer.json."""
        _refuse_known_aborts(path)
        with _panics(f"{path}: cannot be read as a tokenizer", CheckpointError):
            return cls(tokenizers.Tokenizer.from_file(str(path)), path.parent)

    @classmethod
    def from_vocabulary(cls, folder: Path) -> "JsonTokenizer":
        """vocab.json and merges.txt of a byte-level tokenizer; its class says how words are cut."""
        config = tokenizer_config(folder)
        name = str(config.get("tokenizer_class") or "Qwen2Tokenizer").removesuffix("Fast")
        if name not in _QWEN + _GPT2:
            raise CheckpointError(
                f"{folder / 'tokenizer_config.json'}: tokenizer_class {shown(name)} is not known here "
                "without a tokenizer.json; transformers' save_pretrained() writes one"
            )
        prefix = bool(config.get("add_prefix_space") or False)
        vocabulary = read_json(folder / "vocab.json")
        with _panics(f"{folder}: vocab.json and merges.txt do not fit together", CheckpointError):
            tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, _read_merges(folder / "merges.txt")))
            split = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=name in _GPT2)
            if name in _QWEN:
                tokenizer.normalizer = normalizers.NFC()
                words = pre_tokenizers.Split(tokenizers.Regex(_QWEN_WORDS), "isolated")
                split = pre_tokenizers.Sequence([words, split])
            tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
            return cls(tokenizer, folder)

    def _add(self, added: list[AddedToken], special: list[AddedToken], folder: Path):
        """Give the tokenizer the tokens that it lacks or has with other flags."""
        have = {token.content: token for token in self._tokenizer.get_added_tokens_decoder().values()}
        listed = {token.content for token in added}
        wanted = [token for token in added if _flags(have.get(token.content)) != _flags(token)]
        wanted += [t for t in special if t.content not in have and t.content not in listed]
        for token in wanted:
            flags = asdict(token)
            content, number = flags.pop("content"), flags.pop("id")
            self._tokenizer.add_tokens([tokenizers.AddedToken(content, **flags)])
            got = self._tokenizer.token_to_id(content)
            if number is not None and got != number:
                raise CheckpointError(
                    f"{folder}: the token {shown(content)} has the id {number} in the files beside the "
                    f"tokenizer, in the tokenizer it would be {got}; one of them is of another model"
                )

    @cached_property
    def byte_ids(self) -> frozenset[int]:
        """Tokens that stand for a byte each, of which the decoder makes characters once all have come."""
        if "ByteFallback" not in repr(self._tokenizer.decoder):
            return frozenset()
        vocabulary = self._tokenizer.get_vocab()
        return frozenset(number for piece, number in vocabulary.items() if _BYTE.fullmatch(piece))

    @cached_property
    def longest_piece(self) -> int:
        """Characters of the longest token."""
        return max(map(len, self._tokenizer.get_vocab()), default=1)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        check_text(text)
        with _panics("the tokenizer cannot encode the text", ValueError):
            if len(text) < _LONG:
                return self._tokenizer.encode(text, add_special_tokens=special).ids
            return self._tokenizer.encode_batch_fast([text], add_special_tokens=special)[0].ids

    def decode(self, token_ids: list[int]) -> str:
        with _panics("the tokenizer cannot decode the tokens", ValueError):
            return self._tokenizer.decode(token_ids, skip_special_tokens=True)

    def piece(self, token_id: int) -> str:
        with _panics("the tokenizer cannot decode the token", ValueError):
            return self._tokenizer.decode([token_id], skip_special_tokens=False)


@contextmanager
def _panics(what: str, kind: type[ValueError]) -> Iterator[None]:
    """Whatever the library raises becomes `kind`, and so does its PanicException, which is no Exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError, CheckpointError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise kind(f"{what}: {first_line(error) or type(error).__name__}") from None


def _flags(token) -> tuple | None:
    """What two tokens are compared by; None where there is none."""
    return token and (token.special, token.lstrip, token.rstrip, token.single_word, token.normalized)


def _refuse_known_aborts(path: Path):
    """What makes the library abort the process, which nothing could catch."""
    data = read_json(path)
    model = data.get("model")
    prefix = model.get("continuing_subword_prefix") if isinstance(model, dict) else None
    if prefix and isinstance(model.get("merges"), list):
        for merge in model["merges"]:
            second = merge[-1] if isinstance(merge, list) and merge else str(merge).partition(" ")[2]
            if not str(second).startswith(str(prefix)):
                raise CheckpointError(
                    f"{path}: key 'model.continuing_subword_prefix' is {shown(prefix)}, with which the "
                    f"second part of the merge {shown(merge)} does not begin"
                )
    for charsmap in _charsmaps(data.get("normalizer")):
        try:
            size = base64.b64decode(charsmap, validate=True)
        except (TypeError, ValueError):
            size = b""
        if len(size) < 4 or int.from_bytes(size[:4], "little") > len(size) - 4:
            raise CheckpointError(f"{path}: key 'normalizer.precompiled_charsmap' is truncated")


def _charsmaps(normalizer) -> list:
    """Every precompiled map of characters in a normalizer, nested ones included."""
    if not isinstance(normalizer, dict):
        return []
    nested = normalizer.get("normalizers")
    inner = [found for part in nested for found in _charsmaps(part)] if isinstance(nested, list) else []
    own = normalizer.get("precompiled_charsmap")
    return [*inner, own] if own is not None else inner


def _read_merges(path: Path) -> list[tuple[str, str]]:
    """Pairs of pieces, one a line; a first line with the version and blank lines do not count."""
    lines = read_text(path).split("\n")
    merges = []
    for number, line in enumerate(lines, 1):
        line = line.rstrip("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise CheckpointError(f"{path}:{number}: must be two pieces and a space, is {shown(line)}")
        merges.append((pair[0], pair[1]))
    return merges
