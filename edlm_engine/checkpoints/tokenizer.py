"""Text to token ids and back, and chat templates."""

from pathlib import Path
from typing import Protocol

from ..errors import CheckpointError
from .folder import read_json


class Tokenizer(Protocol):
    """What the engine needs of a tokenizer."""

    vocab_size: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, token_ids: list[int]) -> str:
        """The text of `token_ids`, special tokens skipped."""
        ...

    def piece(self, token_id: int) -> str:
        """What one token looks like on its own, special tokens by name."""
        ...


class JsonTokenizer:
    """tokenizer.json, through the tokenizers library."""

    def __init__(self, path: Path):
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"{path}: cannot be read as a tokenizer: {error}") from error
        # training-time settings that a tokenizer.json may carry would cut or fill up prompts
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocab_size = self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)

    def piece(self, token_id: int) -> str:
        return self._tokenizer.decode([token_id], skip_special_tokens=False)


class SentencePieceTokenizer:
    """tokenizer.model, through sentencepiece; bos as tokenizer_config.json's add_bos_token says."""

    def __init__(self, path: Path, add_bos: bool):
        import sentencepiece

        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise CheckpointError(f"{path}: cannot be read as a sentencepiece model: {error}") from error
        self._add_bos = add_bos
        self.vocab_size = self._processor.vocab_size()

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text, add_bos=self._add_bos)

    def decode(self, token_ids: list[int]) -> str:
        processor = self._processor
        return processor.decode([i for i in token_ids if i < self.vocab_size and not processor.is_control(i)])

    def piece(self, token_id: int) -> str:
        known = token_id < self.vocab_size
        return self._processor.id_to_piece(token_id).replace("\u2581", " ") if known else ""


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """The folder's tokenizer; None when it has no tokenizer file (token ids in, token ids out)."""
    if (folder / "tokenizer.json").exists():
        return JsonTokenizer(folder / "tokenizer.json")
    if (folder / "tokenizer.model").exists():
        add_bos = bool(_tokenizer_config(folder).get("add_bos_token", False))
        return SentencePieceTokenizer(folder / "tokenizer.model", add_bos)
    return None


def _tokenizer_config(folder: Path) -> dict:
    path = folder / "tokenizer_config.json"
    return read_json(path) if path.exists() else {}


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
    config = _tokenizer_config(folder)
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
