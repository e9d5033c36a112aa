"""Templates that use what those of real models use, and conversations to render with them."""
# ruff: noqa: E501 (a line of a template is as long as it is)

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a town, e.g. <Köln> & 'Bonn'",
            "parameters": {
                "type": "object",
                "properties": {
                    "town": {"type": "string", "enum": ["Köln", "Bonn"]},
                    "days": {"type": ["integer", "null"], "default": None},
                },
                "required": ["town"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "", "parameters": {}}},
]
DOCUMENTS = [{"title": "First", "text": "One <b>"}, {"title": "Second", "text": "Two\nlines"}]

_CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "weather", "arguments": {"town": "Köln", "x": 1.5}},
}
_IMAGE = {"type": "image", "image": object()}
CONVERSATIONS = {
    "user": [{"role": "user", "content": "Hello <|there|> 'you'"}],
    "system": [{"role": "system", "content": " Be brief.\n"}, {"role": "user", "content": "  Hi \n"}],
    "turns": [
        {"role": "user", "content": "1 < 2?"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes & <no>"},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "日本 é"},
    ],
    "tool call": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "tool_calls": [_CALL, {"type": "function", "function": {**_CALL["function"]}}]},
        {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "sunny"},
        {"role": "tool", "content": "cloudy"},
        {"role": "user", "content": "Thanks"},
    ],
    "call as text": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}]},
        {"role": "tool", "content": '{"t": 3}'},
    ],
    "reasoning": [
        {"role": "user", "content": "Think"},
        {"role": "assistant", "content": "Done", "reasoning_content": "\nlong\n"},
        {"role": "user", "content": "More"},
        {"role": "assistant", "content": "", "reasoning": "short", "tool_calls": None},
    ],
    "parts": [
        {"role": "user", "content": [{"type": "text", "text": "See "}, _IMAGE, {"type": "text", "text": "this"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    ],
    "two systems": [
        {"role": "system", "content": "A"},
        {"role": "system", "content": "B"},
        {"role": "developer", "content": "C"},
        {"role": "user", "content": ""},
        {"role": "user", "content": "again"},
    ],
    "answer last": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 0}],
}  # fmt: skip

TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'"
        " + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama": """
{{- bos_token }}
{%- if custom_tools is defined %}{% set tools = custom_tools %}{% endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|header|>system<|end|>\\n\\nToday: " + date_string + "\\n" + system_message + "<|eot|>" }}
{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first = messages[0]['content']|trim %}
        {%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("no first user message") }}
    {%- endif %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
    {{- first + "<|eot|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|header|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- "several" }}{%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|header|>assistant<|end|>\\n\\n' }}
{%- endif %}
""",
    "qwen": """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '<|im_end|>\\n' }}{%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string
        and not (message.content.startswith('<r>') and message.content.endswith('</r>')) %}
        {%- set ns.multi_step = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}{%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or (not loop.last and reasoning)) %}
            {{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}{{- content }}{%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
                {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
                {{- '<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}{{- tool_call.arguments }}
                {%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<r>\\n' + content + '\\n</r>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}""",
    "mistral": """
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}{{- '"' + key + '": "' + val + '"' }}
                    {%- else %}{{- '"' + key + '": ' + val|tojson }}{%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}{%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}{{- ', "id": "?"}' }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- elif message["role"] in ["tool_results", "tool"] %}
        {%- if message.content is defined and message.content.content is defined %}
            {%- set content = message.content.content %}
        {%- else %}{%- set content = message.content %}{%- endif %}
        {{- '[RESULTS] {"content": ' + content|string + "}" }}
    {%- endif %}
{%- endfor %}""",
    "gemma": """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'assistant') -%}{%- set role = "model" -%}
    {%- else -%}{%- set role = message['role'] -%}{%- endif -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}
""",
    "deepseek": (
        "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
        "{% set ns = namespace(is_first=false, is_tool=false, system_prompt='', is_first_sp=true) %}"
        "{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}"
        "{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first_sp = false %}"
        "{%- else %}{% set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] %}{%- endif %}"
        "{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}"
        "{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}"
        "{{ '<|User|>' + message['content'] }}{%- endif %}"
        "{%- if message['role'] == 'assistant' and 'tool_calls' in message %}{%- set ns.is_tool = false -%}"
        "{%- for tool in message['tool_calls'] %}{%- if not ns.is_first %}"
        "{{ '<|calls|>' + tool['type'] + '<|sep|>' + tool['function']['name'] + '\\n```json\\n' }}"
        "{{ tool['function']['arguments'] if tool['function']['arguments'] is string else"
        " tool['function']['arguments']|tojson(sort_keys=true, separators=(',', ':')) }}"
        "{%- set ns.is_first = true -%}{%- else %}{{ '\\n' + tool.function.name }}{%- endif %}{%- endfor %}{%- endif %}"
        "{%- if message['role'] == 'assistant' and 'tool_calls' not in message %}{% set content = message['content'] %}"
        "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
        "{{ '<|Assistant|>' + content + eos_token }}{%- endif %}"
        "{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}{{ '<out>' + message.content }}{%- endif %}"
        "{%- endfor -%}{% if add_generation_prompt and not ns.is_tool %}{{ '<|Assistant|><think>\\n' }}{% endif %}"
    ),
    "generation": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{%- generation -%} {{ m.content }}{{ eos_token }} "
        "{% endgeneration %}{% else %}{{ m.role }} {{ m.content }}{% endif %}\n{% endfor %}"
    ),
    "documents": """{{ bos_token }}{% if documents is not none %}Documents: {{ documents|length }}
{% for document in documents %}
    [{{ loop.index }}/{{ loop.length }}] {{ document.title|upper }}
{{ document['text']|indent(2, first=True) }}
{% else %}
none
{% endfor %}
{% endif %}
{% if tools is none %}no tools{% elif tools %}{{ tools|map(attribute='function.name')|join(', ') }}{% endif %}
{{ messages|tojson(ensure_ascii=True) }}""",
    "parts": """
{%- set image_count = namespace(value=0) %}
{%- for message in messages %}
{{- message.role }}: {% if message['content'] is string %}{{ message['content'] }}
{% elif message.content is sequence %}
{%- for content in message['content'] %}
{%- if content['type'] == 'image' or 'image' in content or 'image_url' in content %}
{%- set image_count.value = image_count.value + 1 %}
{%- if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|>{{ image_token }}<|vision_end|>
{%- elif 'text' in content %}{{ content['text'] }}{% endif %}
{%- endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}""",
    "macros": """
{%- macro type_of(spec, depth=0) -%}
    {%- if spec.type is defined and spec.type is string -%}
        {{- spec.type }}{%- if spec.enum %}({{ spec.enum|map('tojson')|join(' | ') }}){% endif -%}
    {%- elif spec.type is iterable and spec.type is not mapping -%}
        {{- spec.type|reject('equalto', 'null')|sort|join('/') -}}?
    {%- else -%}any{%- endif -%}
    {%- for key, value in (spec.properties or {})|dictsort %}
{{ '  ' * (depth + 1) }}{{ key }}: {{ type_of(value, depth=depth + 1) }}{{ ',' if not loop.last }}
    {%- endfor -%}
{%- endmacro -%}
{%- macro wrapped(tag) %}<{{ tag }}>{{ caller() }}</{{ tag }}>{% endmacro -%}
{%- for tool in tools or [] %}{{ tool.function.name }} {{ type_of(tool.function.parameters) }};{% endfor %}
{%- for message in messages %}{% call wrapped(message.role) %}{{ message.content|default('-', true) }}{% endcall %}
{%- endfor %}""",
    "loops": """
{%- for message in messages recursive %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {%- if loop.index > 4 %}{% break %}{% endif %}
    {{- loop.index0 }}/{{ loop.revindex }} {{ loop.cycle('a', 'b') }} {{ loop.changed(message.role) }}
    {{- (loop.previtem.role if loop.previtem is defined else '^') ~ (loop.nextitem.role if not loop.last else '$') }}
{%- else %}nothing{%- endfor %}
{%- for role, group in messages|groupby('role') %}[{{ role }} x{{ group|length }}]{% endfor %}
{%- for a in messages[0]|items %}{{ a[0] }};{% endfor %}
{%- for three in range(7)|batch(3, 'x') %}{{ three|join(' ') }};{% endfor %}
{%- for row in range(5)|slice(2) %}{{ row }}{% endfor %}{{ range(1, 9, 3)|list|last }}{{ messages[-1:][0].role }}""",
    "filters": """
{%- set text = messages[-1].content if messages[-1].content is string else 'none' %}
{{- [text|upper, text|lower, text|title, text|capitalize, text|trim, text|length, text|wordcount]|tojson }}
{{ text|replace('e', 'EE')|truncate(8, True, '..', 0) }} {{ text|center(30) }}| {{ "%-10s|%05.1f|%d%%" % (text, 2.5, 3) }}
{{ '{:>12}|{!r:<8}|{a:.2f}'.format(text, 'x', a=1.005) }} {{ '{0[a]}{b.x}'.format({'a': 1}, b={'x': 2}) }} {{ '%s=%s'|format('a', text) }}
{{ 'a' ~ 1 ~ none ~ [1, 'b'] ~ {'c': 1.0} }} {{ 7 // 2 }} {{ 7 % 3 }} {{ 2 ** 10 }} {{ -3 / 2 }} {{ 2.5|round }} {{ 'ab' * 3 }} {{ [1] * 2 + [3] }}
{{ messages|map(attribute='role')|unique|list }} {{ messages|map(attribute='n', default=3)|sum }} {{ [3, 1, 2]|sort(reverse=true) }} {{ [1, 5]|max }}
{{ messages|selectattr('content', 'defined')|rejectattr('role', 'in', ['tool', 'system'])|list|count }}
{{ {'b': 1, 'a': [true, none, 1e3, 'é<']}|tojson }} {{ {'b': 1, 'a': {'x': []}}|tojson(indent=2, sort_keys=true) }} {{ [1, [2]]|tojson(separators=(';', '=')) }}
{{ [1, 2]|tojson(indent='\t') }} {{ 'ü'|tojson(ensure_ascii=true) }} {{ missing }}{{ missing is undefined }} {{ 'a,b,,c'.split(',', 2) }} {{ ' x '.strip() }}
{{ 'a/b'.rpartition('/') }} {{ '-'.join(['x', 'y']) }} {{ 'abc'[::-1] }} {{ 'x\ty'.expandtabs(4) }} {{ '7'.zfill(3) }} {{ 'a\nb'.splitlines() }} {{ 'é'.encode() }}
{{ dict(a=1, **{'b': 2}) }} {{ dict.fromkeys(['k'], 0) }} {{ {'a': 1}.items()|list }} {{ {'a': 1}.get('z', 'd') }} {{ (1, 2) in [(1, 2)] }} {{ [1, 2].index(2) }} {{ 4 is divisibleby 2 }}
{{ 'x' if text == 'y' }}{{ 1 < 2 < 3 }} {{ text is string and text is not number }} {{ none is none }} {{ '<&>'|e }} {{ '<b>'|safe ~ '<' }} {{ 'a b'|urlencode }} {{ 3|string + '4' }} {{ '12'|int + 1 }} {{ 'x'|float }}
{%- set block %}  kept {{ text }} {% endset %}{{ block|trim }}{% filter upper %}f{{ text }}{% endfilter %}{% with q = 2 %}{{ q }}{% endwith %}
{%- raw %} {{ raw }} {% endraw %}{# a comment #}{{ [none, 0, '', 'v']|select|list }} {{ [1, 2, 3]|first }} {{ 'a'|attr('upper') is callable }} {{ 10|filesizeformat }}""",
    "white space": "  {% if true %}  \n    {{ bos_token }}\n  {%- endif %}  \n\n{% for m in messages %}\n  {{ m.role }}  \n{%+ if true %} x{% endif %}\n{% endfor %}\n\n",
    "autoescape": (
        "{% autoescape true %}{{ messages[0].content }}{{ '<' ~ messages[0].role ~ '<b>'|safe }}"
        "{{ ('<i>%s</i>'|safe) % '<' }}{{ ('<i>{}</i>'|safe).format('<') }}{% endautoescape %}{{ '<' ~ '>' }}"
    ),
}  # fmt: skip
