"""Chat templates, compared with transformers' rendering of the same template and messages."""

import dataclasses
import json

import numpy as np
import pytest
from chat_templates import CONVERSATIONS, DOCUMENTS, TEMPLATES, TOOLS
from checkpoints import write_checkpoint, write_tokenizer

from edlm_engine import CheckpointError, Engine
from edlm_engine.checkpoints.chat_template import load_chat_template

MESSAGES = [{"role": "user", "content": "w5 <b>"}]
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant{{ eos_token }}{% endif %}"
)
CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "rstrip": False,
                  "normalized": False, "single_word": False, "special": True},
    "eos_token": "</s>",
    "pad_token": None,
    "image_token": "<image>",
    "extra_special_tokens": {"tool_token": "<tool>"},
}  # fmt: skip


def write_config(folder, **config):
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def reference(folder):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


def result_of(call, *args, **kwargs):
    """What a call returns, or that it raises."""
    try:
        return call(*args, **kwargs)
    except Exception:
        return "raises"


def template(folder, source: str):
    (folder / "chat_template.jinja").write_text(source)
    return load_chat_template(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("templates")
    write_tokenizer(folder)
    write_config(folder, **CONFIG)
    return folder


@pytest.fixture(scope="module")
def hf(folder):
    return reference(folder)


@pytest.mark.parametrize("name", TEMPLATES)
def test_rendered_as_by_transformers(folder, hf, name):
    source, ours = TEMPLATES[name], template(folder, TEMPLATES[name])
    rendered = 0
    for title, messages in CONVERSATIONS.items():
        for options in (
            {},
            {"tools": TOOLS, "add_generation_prompt": False},
            {"documents": DOCUMENTS, "enable_thinking": False, "bos_token": "<bos>", "tools": []},
        ):
            given = {"add_generation_prompt": True, **options}
            expected = result_of(
                hf.apply_chat_template, messages, tokenize=False, chat_template=source, **given
            )
            own = {"tools", "documents", "add_generation_prompt"}
            variables = {key: value for key, value in given.items() if key not in own}
            arguments = {key: value for key, value in given.items() if key in own}
            actual = result_of(ours.render, messages, template_kwargs=variables, **arguments)
            assert actual == expected, (title, options)
            rendered += expected != "raises"
    assert rendered >= 6  # a template that always raises would show nothing


@pytest.mark.parametrize("name", ("chatml", "llama", "qwen", "parts"))
@pytest.mark.parametrize("answer", ("It is ", " so  ", [{"type": "text", "text": "Look: "}], None, ""))
def test_final_message_is_continued_as_by_transformers(folder, hf, name, answer):
    messages = [*MESSAGES, {"role": "assistant", "content": answer, "reasoning": "hm"}]
    for field in (True, "content", "reasoning_content", "unknown"):
        expected = result_of(
            hf.apply_chat_template, messages, tokenize=False, chat_template=TEMPLATES[name],
            continue_final_message=field,
        )  # fmt: skip
        ours = template(folder, TEMPLATES[name]).render
        options = {"add_generation_prompt": False, "continue_final_message": field}
        assert result_of(ours, messages, **options) == expected, field


def test_continued_message_cannot_begin_another(tmp_path):
    with pytest.raises(ValueError, match="continue_final_message continues the last message, add_gen"):
        template(tmp_path, TEMPLATE).render(MESSAGES, continue_final_message=True)


def test_continued_message_must_be_rendered(tmp_path):
    options = {"add_generation_prompt": False, "continue_final_message": True}
    with pytest.raises(
        ValueError, match=r"jinja: the chat template does not write the last message as it is"
    ):
        template(tmp_path, "{{ messages[0].content|upper }}").render(MESSAGES, **options)
    with pytest.raises(ValueError, match=r"jinja: the chat template reads no 'thoughts'"):
        template(tmp_path, TEMPLATE).render(MESSAGES, **{**options, "continue_final_message": "thoughts"})
    with pytest.raises(ValueError, match=r"last message must have a text in 'content', has None"):
        template(tmp_path, TEMPLATE).render([{"role": "user"}], **options)


def test_no_template(tmp_path):
    assert load_chat_template(tmp_path) is None


@pytest.mark.parametrize("place", ("jinja", "config", "list", "dict", "processor"))
def test_places_of_the_template(tmp_path, place):
    eos = {"content": "</s>", "special": True}
    named = {"tools": "x", "default": TEMPLATE}
    listed = [{"name": name, "template": text} for name, text in named.items()]
    inside = {"jinja": "never used", "config": TEMPLATE, "list": listed, "dict": named, "processor": None}
    write_config(tmp_path, eos_token=eos, bos_token=None, chat_template=inside[place])
    text = TEMPLATE if place == "processor" else "never used"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": text}))
    if place == "jinja":
        (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    assert load_chat_template(tmp_path).render(MESSAGES) == "user: w5 <b>\nassistant</s>"


FILES = {
    "chat_template.jinja": "file {{ tools }}",
    "additional_chat_templates/tool_use.jinja": "tools {{ tools|length }}",
    "additional_chat_templates/rag.jinja": "rag",
    "additional_chat_templates/default.jinja": "another default",
}


@pytest.mark.parametrize("inside", (None, "config", [{"name": "tool_use", "template": "config tools"}]))
@pytest.mark.parametrize(
    "files", ((), tuple(FILES)[:1], tuple(FILES)[:2], tuple(FILES)[:3], tuple(FILES), tuple(FILES)[1:3])
)
def test_several_templates_as_in_transformers(tmp_path, inside, files):
    write_tokenizer(tmp_path)
    config = {**CONFIG, "chat_template": inside} if inside else CONFIG
    write_config(tmp_path, **config)
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(FILES[file])
    hf, ours = reference(tmp_path), load_chat_template(tmp_path)
    assert (ours is None) == (hf.chat_template is None)
    for tools in (None, [], TOOLS):
        expected = result_of(hf.apply_chat_template, MESSAGES, tools=tools, tokenize=False)
        actual = result_of(ours.render, MESSAGES, tools=tools) if ours else "raises"
        assert actual == expected, tools
    if "additional_chat_templates/rag.jinja" in files:
        assert ours.render(MESSAGES, tools=TOOLS, name="rag") == "rag"


def test_unknown_name_lists_those_that_exist(tmp_path):
    write_config(tmp_path, chat_template=[{"name": n, "template": n} for n in ("tool_use", "rag")])
    ours = load_chat_template(tmp_path)
    assert ours.render(MESSAGES, tools=[]) == "tool_use" and ours.render(MESSAGES, name="rag") == "rag"
    with pytest.raises(
        ValueError, match=r"config\.json.* no chat template named 'default'; there are 'rag', 't"
    ):
        ours.render(MESSAGES)


@pytest.mark.parametrize(
    "value", (5, True, ["x"], [{"name": "default"}], [{"template": "x"}], [[]], {"default": 3}, [])
)
def test_odd_types_are_errors_of_rendering(tmp_path, value):
    write_config(tmp_path, chat_template=value)
    ours = load_chat_template(tmp_path)
    if value == []:
        assert ours is None
        return
    with pytest.raises(
        CheckpointError, match=r"tokenizer_config\.json: key 'chat_template'.* must be a text, or"
    ):
        ours.render(MESSAGES)


def test_template_that_is_no_text(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"{{ '\xff' }}")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: the chat template is no UTF-8: .*0xff"):
        load_chat_template(tmp_path).render(MESSAGES)


def test_file_that_is_far_too_long(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"x" * 3_000_000)
    with pytest.raises(CheckpointError, match=r"jinja: the chat template has more than 1048576 bytes"):
        load_chat_template(tmp_path).render(MESSAGES)


def test_unreadable_file(tmp_path, monkeypatch):
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: cannot be read: Permission denied"):
        load_chat_template(tmp_path)


SHOW_TOKENS = (
    "{{ bos_token }}|{{ eos_token }}|{{ pad_token is defined }}|{{ sep_token }}|{{ image_token }}|"
    "{{ tool_token }}"
)


@pytest.mark.parametrize("older", (False, True))
@pytest.mark.parametrize("decoder", (False, True))
def test_special_tokens_as_in_transformers(tmp_path, older, decoder):
    write_tokenizer(tmp_path)
    config = {**CONFIG, "added_tokens_decoder": {}} if decoder else CONFIG
    write_config(tmp_path, **config, add_bos_token=True)
    if older:
        values = {"bos_token": {**CONFIG["bos_token"], "content": "<old>"}, "sep_token": "<sep>"}
        del values["bos_token"]["__type"]
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(values))
    (tmp_path / "chat_template.jinja").write_text(SHOW_TOKENS)
    expected = reference(tmp_path).apply_chat_template(MESSAGES, tokenize=False)
    assert load_chat_template(tmp_path).render(MESSAGES) == expected
    assert ("<old>" in expected) == (older and not decoder)


def test_variables_of_the_caller(tmp_path):
    ours = template(tmp_path, "{{ enable_thinking }} {{ bos_token }} {{ x.y }}")
    variables = {"enable_thinking": False, "bos_token": "<b>", "x": {"y": np.int64(3)}}
    assert ours.render(MESSAGES, template_kwargs=variables) == "False <b> 3"
    with pytest.raises(ValueError, match=r"template_kwargs\['tools'\]: give tools as an argument of its own"):
        ours.render(MESSAGES, template_kwargs={"tools": []})
    with pytest.raises(TypeError, match=r"template_kwargs must be a dict of template variables, got 3"):
        ours.render(MESSAGES, template_kwargs=3)
    with pytest.raises(TypeError, match="template_kwargs: 3 is no name"):
        ours.render(MESSAGES, template_kwargs={3: 3})


def test_values_without_an_end(tmp_path):
    endless = {"role": "user"}
    endless["content"] = [endless]
    ours = template(tmp_path, TEMPLATE)
    with pytest.raises(ValueError, match=r"messages\[1\] is nested too deeply, or contains itself"):
        ours.render([*MESSAGES, endless])
    with pytest.raises(ValueError, match=r"tools\[0\] is nested too deeply"):
        ours.render(MESSAGES, tools=[endless])
    with pytest.raises(ValueError, match="template_kwargs is nested too deeply"):
        ours.render(MESSAGES, template_kwargs={"x": endless})


class Model:
    """As pydantic's."""

    def model_dump(self):
        return {"role": "user", "content": [{"type": "image", "image": object()}, {"text": "x"}]}


@dataclasses.dataclass
class Record:
    role: str = "assistant"
    content: str | None = None
    score: object = np.float32(0.5)


def test_messages_of_other_types(folder, hf):
    source = "{% for m in messages %}{{ m }}{% endfor %}"
    messages = [
        Model(),
        Record(),
        {"role": np.str_("user"), "n": np.int64(3), "b": np.bool_(False), "t": (1,)},
    ]
    expected = hf.apply_chat_template(messages, tokenize=False, chat_template=source)
    ours = template(folder, source)
    assert ours.render(messages) == expected
    assert ours.render(message for message in messages) == expected  # the check does not eat them
    assert "<object>" in expected and "False" in expected


def test_messages_are_left_as_they_are(tmp_path):
    messages = [{"role": "assistant", "content": [{"text": "a"}], "reasoning": "b", "x": None}]
    before = json.dumps(messages)
    options = {"add_generation_prompt": False, "continue_final_message": True}
    template(tmp_path, "{{ messages[0].content[0].text }}").render(messages, **options)
    assert json.dumps(messages) == before


@pytest.mark.parametrize(
    ("messages", "where"),
    [
        (["hello"], r"messages\[0\] must be a mapping with 'role' and 'content', got 'hello'"),
        ([*MESSAGES, {"content": "x"}], r"messages\[1\] must have a 'role', got {'content': 'x'}"),
        (
            [{"content": "x" * 10**6}],
            r"messages\[0\] must have a 'role', got {'content': 'x{30,60}\.\.\.x{30,60}'}$",
        ),
        ([MESSAGES], r"messages\[0\] must be a mapping"),
        ("hello", r"messages must be a list of messages, got 'hello'"),
        (MESSAGES[0], r"messages must be a list of messages, got {'content'"),
        (None, r"messages must be a list of messages, got None"),
        ([], r"messages is empty"),
        (iter(()), r"messages is empty"),
    ],
)
def test_malformed_messages(tmp_path, messages, where):
    with pytest.raises((ValueError, TypeError), match=where):
        template(tmp_path, TEMPLATE).render(messages)


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"tools": [len]}, r"tools\[0\] must be the JSON schema of a function, as a dict, got <built-in"),
        ({"tools": TOOLS[0]}, r"tools must be a list of dicts, got {"),
        ({"documents": [{}, "text"]}, r"documents\[1\] must be a dict with 'title' and 'text', got 'text'"),
    ],
)
def test_malformed_tools_and_documents(tmp_path, options, where):
    with pytest.raises(TypeError, match=where):
        template(tmp_path, TEMPLATE).render(MESSAGES, **options)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__ }}",
        "{{ raise_exception.__globals__.items() }}",
        "{{ strftime_now.__self__ }}{{ strftime_now.__self__.overlay() }}",
        "{{ dict.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ ''|attr('__class__') }}{{ (''|attr('__class__')).__mro__ }}",
        "{{ 'x{0.__class__.__mro__}'.format(messages) }}",
        "{{ 'x{0.__class__.__mro__}'['format'](messages) }}",
        "{{ 'x{a.__class__.__mro__}'.format_map({'a': 1}) }}",
        "{% set ns = namespace(x=1) %}{% set ns.__init__ = 1 %}{{ 'unsafe' ~ ns }}",
    ],
)
def test_sandbox_refuses(tmp_path, source):
    with pytest.raises(ValueError, match=r"refuses these messages: .*(unsafe|underscore)"):
        template(tmp_path, source).render(MESSAGES)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must alternate"),
        (
            "{{ raise_exception('\x1b[31m\n' ~ 'x' * 999) }}",
            r"refuses these messages: \\x1b\[31m\\nx{100,300}$",
        ),
        ("{{ 1 / 0 }}", "refuses these messages: division by zero"),
        ("{{ messages[0].content + 1 }}", "refuses these messages: can only concatenate str"),
        ("{% for i in range(10**9) %}{% endfor %}", "refuses these messages: Range too big"),
        ("{% include 'x' %}", "refuses these messages: no loader"),
    ],
)
def test_template_that_raises(tmp_path, source, message):
    with pytest.raises(ValueError, match=rf"chat_template\.jinja: the chat template {message}"):
        template(tmp_path, source).render(MESSAGES)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("fine\n{% if %}", "chat template, line 2: "),
        ("{{ x|nofilter }}", "chat template, line 1: No filter named 'nofilter'"),
        ("{{ " + "9" * 5000 + " }}", "the chat template cannot be compiled: Exceeds the limit"),
        ("{{ " + "(" * 9000, "the chat template cannot be compiled: "),
        ("x" * 300_000, "the chat template cannot be compiled: it has 300000 characters"),
    ],
)
def test_broken_template_is_an_error_of_rendering(tmp_path, source, message):
    ours = template(tmp_path, source)
    with pytest.raises(CheckpointError, match=rf"chat_template\.jinja: {message}"):
        ours.render(MESSAGES)


def test_engine_chat(tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint")
    with Engine(folder) as engine, pytest.raises(ValueError, match="has no chat template; use generate"):
        engine.chat(MESSAGES)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }} w9")
    with Engine(folder) as engine:
        result = engine.chat([{"role": "user", "content": "w5"}], max_new_tokens=4)
        assert result.prompt_token_ids == [5, 9]
        assert result.token_ids == engine.generate([5, 9], max_new_tokens=4).token_ids


def test_broken_template_does_not_stop_an_engine(tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint")
    (folder / "chat_template.jinja").write_text("{% if %}")
    with Engine(folder) as engine:
        assert engine.generate([5, 9], max_new_tokens=4).token_ids
        with pytest.raises(CheckpointError, match=r"chat_template\.jinja: chat template, line 1"):
            engine.chat(MESSAGES)
