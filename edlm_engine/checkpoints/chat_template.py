"""Chat templates of a checkpoint, rendered as transformers renders them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError, shown
from .chat_messages import REASONING, mark_end, plain_dicts, plain_messages, plain_of
from .folder import read_object

_MARK = "CONTINUE_FINAL_MESSAGE_TAG "  # ends in a space, to tell whether the template trims
_OWN = ("messages", "tools", "documents", "add_generation_prompt")  # arguments of render()

_MAX_BYTES = 1 << 20  # of a template's file: no sandbox takes as many characters


@dataclass(frozen=True, slots=True)
class Source:
    """A template as a file holds it: the text, or bytes of a .jinja file, or what stands there instead.

    where: the file, with the key in it.
    """

    where: str
    value: object

    def text(self) -> str:
        """Raises CheckpointError for what is no text."""
        value = self.value
        if isinstance(value, bytes):
            if len(value) > _MAX_BYTES:
                raise CheckpointError(f"{self.where}: the chat template has more than {_MAX_BYTES} bytes")
            try:
                value = value.decode("utf-8")
            except UnicodeDecodeError as error:
                raise CheckpointError(f"{self.where}: the chat template is no UTF-8: {error}") from None
        if not isinstance(value, str):
            wanted = "a text, or a list of objects that have 'name' and 'template'"
            raise CheckpointError(f"{self.where}: the chat template must be {wanted}, is {shown(value)}")
        return value


class ChatTemplate:
    """The Jinja chat template of a checkpoint, or several by name.

    A template is foreign code. It is compiled when it is first used, in a sandbox that bounds its memory and
    its time; what is wrong with it is an error of render().
    """

    def __init__(self, sources: dict[str, Source], special_tokens: dict[str, str]):
        self._sources, self._special_tokens = sources, special_tokens
        self._compiled = {}  # code by the source's place

    def render(
        self,
        messages,
        *,
        tools=None,
        documents=None,
        template_kwargs=None,
        add_generation_prompt=True,
        continue_final_message=False,
        name=None,
    ) -> str:
        """The prompt of `messages`, which holds its special tokens already.

        messages: an iterable of mappings, dataclasses or objects with model_dump(), each with a "role". Keys
            whose value is None are left out, as transformers does.
        tools: JSON schemas, as dicts. documents: dicts with "title" and "text".
        template_kwargs: further variables of the template, such as enable_thinking; they win over special
            tokens.
        add_generation_prompt: end with the beginning of the assistant's answer.
        continue_final_message: end with the last message instead, to be continued: True, or the name of the
            field that is continued if it is not "content".
        name: of several templates; None takes "tool_use" if there are tools and such a template, else
            "default".

        Raises ValueError or TypeError for arguments that cannot be, and naming the file when the template
        refuses them or costs too much; CheckpointError for a template that is none.
        """
        if add_generation_prompt and continue_final_message:
            raise ValueError(
                "continue_final_message continues the last message, add_generation_prompt begins another; "
                "set one of them to False"
            )
        tools = plain_dicts(tools, "tools", "the JSON schema of a function, as a dict")
        documents = plain_dicts(documents, "documents", "a dict with 'title' and 'text'")
        source = self._choose(name, tools)
        chat = plain_messages(messages)
        variables = {**self._special_tokens, **_variables(template_kwargs)}
        variables |= {"tools": tools, "documents": documents, "messages": chat}
        variables["add_generation_prompt"] = add_generation_prompt
        if not continue_final_message:
            return self._run(source, variables)
        field = continue_final_message if isinstance(continue_final_message, str) else "content"
        fields = REASONING if field in REASONING else (field,)
        if not any(read in source.text() for read in fields):
            raise ValueError(f"{source.where}: the chat template reads no {field!r} that could be continued")
        text = mark_end(chat[-1], field, _MARK)
        return _before_mark(self._run(source, variables), text, source)

    def reads(self, variable: str) -> bool:
        """Whether one of the templates mentions a variable of that name."""
        word = re.compile(rf"\b{re.escape(variable)}\b")
        return any(word.search(source.text()) for source in self._sources.values())

    def _choose(self, name, tools) -> Source:
        if name is None:
            name = "tool_use" if tools is not None and "tool_use" in self._sources else "default"
        if name not in self._sources:
            known = ", ".join(map(repr, sorted(map(str, self._sources)))) or "none"
            where = next((source.where for source in self._sources.values()), "the checkpoint")
            raise ValueError(f"{where}: there is no chat template named {shown(name)}; there are {known}")
        return self._sources[name]

    def _run(self, source: Source, variables: dict) -> str:
        from .template_costs import weigh
        from .template_sandbox import TemplateSandbox

        sandbox = TemplateSandbox(weigh(variables, 1 << 62))
        code = self._code(source, sandbox)
        try:
            template = sandbox.template_class.from_code(sandbox, code, sandbox.make_globals(None))
            return template.render(variables)
        except Exception as error:  # a template is foreign code and raises what it likes
            said = _printable(error)
            raise ValueError(f"{source.where}: the chat template refuses these messages: {said}") from error

    def _code(self, source: Source, sandbox):
        if source.where not in self._compiled:
            from jinja2.exceptions import TemplateSyntaxError

            text = source.text()
            try:
                self._compiled[source.where] = sandbox.compile(text)
            except TemplateSyntaxError as error:
                said = _printable(error.message)
                raise CheckpointError(
                    f"{source.where}: chat template, line {error.lineno}: {said}"
                ) from error
            except Exception as error:  # too deep for Python, an integer too long for it, …
                said = _printable(error)
                raise CheckpointError(
                    f"{source.where}: the chat template cannot be compiled: {said}"
                ) from error
        return self._compiled[source.where]


def _variables(template_kwargs) -> dict:
    if template_kwargs is None:
        return {}
    if not isinstance(template_kwargs, Mapping):
        raise TypeError(f"template_kwargs must be a dict of template variables, got {shown(template_kwargs)}")
    for key in template_kwargs:
        if not isinstance(key, str):
            raise TypeError(f"template_kwargs: {shown(key)} is no name of a variable")
        if key in _OWN:
            raise ValueError(f"template_kwargs[{key!r}]: give {key} as an argument of its own")
    return plain_of(template_kwargs, "template_kwargs")


def _before_mark(rendered: str, text: str, source: Source) -> str:
    """`rendered` up to the end of the last message's `text`, which the mark shows."""
    mark = _MARK.strip()
    if text.strip() not in rendered or mark not in rendered:
        raise ValueError(
            f"{source.where}: the chat template does not write the last message as it is, so that it cannot "
            f"be continued: {shown(text)}"
        )
    end = rendered.rindex(mark)
    trimmed = rendered[end : end + len(_MARK)] != _MARK
    return rendered[:end].rstrip() if trimmed else rendered[:end]


def _printable(error) -> str:
    """What a template says, in one line that a terminal can show."""
    text = str(error)[:300] or type(error).__name__
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def load_chat_template(folder: Path) -> ChatTemplate | None:
    """The folder's chat template; None when it has none.

    As in transformers, chat_template.jinja and additional_chat_templates/NAME.jinja come before the key
    "chat_template" of tokenizer_config.json (a text, or several by name); chat_template.json, which old
    processors wrote and tokenizers do not read, comes last.
    """
    config = read_object(folder / "tokenizer_config.json")
    sources = _jinja_files(folder)
    for file in ("tokenizer_config.json", "chat_template.json"):
        value = read_object(folder / file).get("chat_template")
        if not sources and value is not None:
            sources = _entries(value, str(folder / file))
    return ChatTemplate(sources, _special_tokens(folder, config)) if sources else None


def _jinja_files(folder: Path) -> dict[str, Source]:
    paths = {"default": folder / "chat_template.jinja"}
    paths |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    return {name: Source(str(path), _bytes(path)) for name, path in paths.items() if path.is_file()}


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _entries(value, path: str) -> dict[str, Source]:
    """Templates by name. An entry that is none becomes a source that says so when it is rendered."""
    where = f"{path}: key 'chat_template'"
    if isinstance(value, dict):
        return {name: Source(f"{where}, {shown(name)}", text) for name, text in value.items()}
    if not isinstance(value, list):
        return {"default": Source(where, value)}
    sources = {}
    for index, entry in enumerate(value):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or "template" not in entry:
            return {"default": Source(f"{where}[{index}]", [entry])}
        sources[entry["name"]] = Source(f"{where}, {shown(entry['name'])}", entry["template"])
    return sources


def _special_tokens(folder: Path, config: dict) -> dict[str, str]:
    """The texts of named special tokens, by their names in a template."""
    tokens = _named_tokens(config)
    if "added_tokens_decoder" not in config:  # where transformers reads this older file
        tokens |= _named_tokens(read_object(folder / "special_tokens_map.json"))
    return tokens


def _named_tokens(config: dict) -> dict[str, str]:
    named = {key: value for key, value in config.items() if key.endswith("_token")}
    if isinstance(more := config.get("extra_special_tokens"), dict):
        named |= more
    texts = {key: value.get("content") if isinstance(value, dict) else value for key, value in named.items()}
    return {key: text for key, text in texts.items() if isinstance(text, str)}
