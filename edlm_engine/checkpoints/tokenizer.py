"""Text to token ids and back, and chat templates."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ..errors import CheckpointError
from .added_tokens import tokenizer_config


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


class ChatTemplate:
    """A checkpoint's Jinja chat template, rendered in a sandbox."""

    def __init__(self, source: str, path: Path, variables: dict):
        from jinja2.exceptions import TemplateSyntaxError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _raise
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise CheckpointError(f"{path}: chat template, line {error.lineno}: {error.message}") from error
        self._path, self._variables = path, variables

    def render(self, messages: list[dict]) -> str:
        """The prompt of `messages` ({"role": ..., "content": ...}), ready for the assistant's answer."""
        for index, message in enumerate(messages):
            if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
                raise ValueError(f"messages[{index}] must have 'role' and 'content', got {message!r}")
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **self._variables)
        except Exception as error:  # a template is foreign code and raises what it likes
            raise ValueError(f"{self._path}: the chat template refuses these messages: {error}") from error


def _raise(message: str):
    from jinja2.exceptions import TemplateError

    raise TemplateError(message)


def load_chat_template(folder: Path) -> ChatTemplate | None:
    """chat_template.jinja, or the one in tokenizer_config.json; None when there is neither."""
    config = tokenizer_config(folder)
    variables = {key: _token_text(config.get(key)) for key in ("bos_token", "eos_token")}
    jinja = folder / "chat_template.jinja"
    if jinja.exists():
        return ChatTemplate(jinja.read_text(encoding="utf-8"), jinja, variables)
    template = config.get("chat_template")
    if isinstance(template, list):  # several named templates
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if template is None:
        return None
    return ChatTemplate(template, folder / "tokenizer_config.json", variables)


def _token_text(token) -> str:
    return token.get("content", "") if isinstance(token, dict) else token or ""
