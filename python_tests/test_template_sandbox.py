"""Templates that would use up memory or time."""

import time

import pytest
from jinja2.exceptions import SecurityError

from edlm_engine.checkpoints.template_sandbox import MAX_SOURCE, TemplateSandbox

HUGE = 10**12
TREE = "{% set ns = namespace(a=(1,), b=(1,)) %}{% for i in range(70) %}{% set ns.a = (ns.a, ns.a) %}{% set ns.b = (ns.b, ns.b) %}{% endfor %}"  # noqa: E501
SAME_HASH = "range(0, 100000 * 2305843009213693951, 2305843009213693951)"


def render(source: str, **options) -> str:
    variables = {"messages": [{"role": "user", "content": "x"}]}
    return TemplateSandbox(**options).from_string(source).render(variables)


def doubling(expression: str) -> str:
    """A text that doubles its length a hundred times."""
    loop = f"{{% for i in range(100) %}}{{% set ns.s = {expression} %}}{{% endfor %}}"
    return "{% set ns = namespace(s='ab') %}" + loop


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "source",
    [
        "{{ 9 ** (9 ** 9) }}",
        "{{ 2 ** 14 ** 2 * 2 ** 16000 }}",
        f"{{{{ 'a' * {HUGE} }}}}",
        f"{{{{ [1] * {HUGE} }}}}",
        f"{{{{ {HUGE} * [1] }}}}",
        f"{{{{ '%{HUGE}d' % 1 }}}}",
        f"{{{{ '%.{HUGE}f' % 1 }}}}",
        f"{{{{ '%*d' % ({HUGE}, 1) }}}}",
        "{{ ('%(a)s' * 100000) % {'a': 'x' * 100000} }}",
        f"{{{{ '%{HUGE}d'|format(1) }}}}",
        f"{{{{ ['%{HUGE}d']|map('format', 1)|list }}}}",
        f"{{{{ '{{:>{HUGE}}}'.format(1) }}}}",
        f"{{{{ '{{:>{{}}}}'.format(1, {HUGE}) }}}}",
        f"{{{{ '{{a:>{HUGE}}}'.format_map({{'a': 1}}) }}}}",
        f"{{{{ ('{{:>{HUGE}}}'|safe).format(1) }}}}",
        "{{ ('{0}' * 100000).format('x' * 100000) }}",
        f"{{{{ 'a'|center({HUGE}) }}}}",
        f"{{{{ ['a']|map('center', {HUGE})|list }}}}",
        f"{{% filter center({HUGE}) %}}a{{% endfilter %}}",
        f"{{{{ 'a\nb'|indent({HUGE}) }}}}",
        "{{ ('a ' * 9999)|wordwrap(1, wrapstring='x' * 60000) }}",
        "{{ ('a' * 10000)|replace('a', 'b' * 100000) }}",
        "{{ ('a' * 10000).replace('a', 'b' * 100000) }}",
        "{{ ('a' * 100000)|join('b' * 100000) }}",
        "{{ ('b' * 100000).join('a' * 100000) }}",
        "{{ ('b' * 100000).join((messages * 10000)|map(attribute='role')) }}",
        "{{ ('a' * 100000).translate({97: 'b' * 100000}) }}",
        *(f"{{{{ 'a'.{name}({HUGE}) }}}}" for name in ("center", "ljust", "rjust", "zfill")),
        f"{{{{ 'a'.encode().center({HUGE}) }}}}",
        f"{{{{ '\t'.expandtabs({HUGE}) }}}}",
        f"{{{{ '\t'.expandtabs(tabsize={HUGE}) }}}}",
        f"{{{{ (5).to_bytes({HUGE}, 'big') }}}}",
        f"{{{{ [1]|batch({HUGE}, 0)|list }}}}",
        f"{{{{ [1]|slice({HUGE})|list }}}}",
        f"{{{{ 1|round({HUGE}, 'ceil') }}}}",
        f"{{{{ 5|round(-{HUGE}) }}}}",
        f"{{{{ [1]|tojson(indent={HUGE}) }}}}",
        "{{ ([1] * 9999)|tojson(indent='x' * 99999) }}",
        f"{{{{ lipsum(n={HUGE}) }}}}",
        f"{{{{ '%{HUGE}d' is odd }}}}",
        f"{{{{ '%{HUGE}d' is divisibleby 1 }}}}",
        f"{{% autoescape 'a'|center({HUGE}) %}}{{% endautoescape %}}",
        "{% set s = 'a' * 9999999 %}{{ s|list|length }}",
        "{% set s = 'a ' * 9999999 %}{{ s.split(' ')|length }}",
        "{% set s = 'a' * 1000000 %}{{ s.rfind('ab' + s[:500000]) }}",
        "{% set s = 'a' * 1000000 %}{{ s.strip('b' * 900000 + 'a') }}",
        "{{ ('a' * 1000000).encode('punycode') }}",
        "{{ ('<!--' * 200000)|striptags }}",
        "{{ (('<!--' * 200000)|safe).striptags() }}",
        doubling("ns.s ~ ns.s"),
        doubling("ns.s + ns.s"),
        doubling("ns.s * 2"),
        doubling("'%s%s' % (ns.s, ns.s)"),
        doubling("'{0}{0}'.format(ns.s)"),
        doubling("[ns.s, ns.s]|join"),
        doubling("''.join([ns.s, ns.s])"),
        doubling("ns.s|replace('b', ns.s ~ 'b')"),
        doubling("[ns.s, ns.s]|string"),
        doubling("{'a': ns.s}|tojson ~ ns.s"),
        "{% set ns = namespace(s='ab') %}{% for i in range(100) %}{% set x %}{{ ns.s }}{{ ns.s }}{% endset %}"
        "{% set ns.s = x %}{% endfor %}",
        "{% set x %}{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}{% endset %}",
        "{% macro m() %}"
        + "x" * 9999
        + "{% endmacro %}{% for i in range(99999) %}{% set x = m() %}{% endfor %}",
        "{% set ns = namespace(l=[]) %}{% set s = 'x' * 1000000 %}"
        "{% for i in range(99999) %}{% set ns.l = [ns.l, s[1:]] %}{% endfor %}",
        TREE + "{{ ns.a }}",
        TREE + "{{ ns }}",
        TREE + "{{ 'x' ~ ns.a }}",
        TREE + "{{ ns.a|string }}",
        TREE + "{{ ns.a|tojson }}",
        TREE + "{{ {'a': ns.a}.values() }}",
        TREE + "{{ [ns.a]|map('string')|join }}",
        TREE + "{{ '%s' % ns.a }}",
        TREE + "{{ '%s' % (ns.a,) }}",
        TREE + "{{ '{}'.format(ns.a) }}",
        TREE + "{{ '{!r}'.format(ns.a) }}",
        TREE + "{{ ns.a == ns.b }}",
        TREE + "{{ ns.a in [ns.b] }}",
        TREE + "{{ ns.a is eq(ns.b) }}",
        TREE + "{{ [ns.a]|select('equalto', ns.b)|list }}",
        TREE + "{{ [ns.a].index(ns.b) }}",
        TREE + "{{ {ns.a: 1}|length }}",
        TREE + "{{ {}[ns.a] }}",
        TREE + "{{ {}.get(ns.a) }}",
        TREE + "{{ dict([(ns.a, 1)]) }}",
        TREE + "{{ [ns.a, ns.b]|sort }}",
        TREE + "{{ [ns.a, ns.b]|unique|list }}",
        TREE + "{{ [ns.a, ns.b]|max }}",
        TREE + "{% for x in [ns.a, ns.b] %}{{ loop.changed(x) }}{% endfor %}",
        f"{{{{ dict.fromkeys({SAME_HASH})|length }}}}",
        f"{{{{ {{}}.fromkeys({SAME_HASH})|length }}}}",
        f"{{{{ dict({SAME_HASH}|batch(2))|length }}}}",
        f"{{{{ {SAME_HASH}|unique|list|length }}}}",
        "{{ range(100000)|batch(1)|sum(start=[])|length }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(70) }}",
        "{{ x }}" + "x" * MAX_SOURCE,
    ],
)
def test_cost_is_bounded(source, monkeypatch):
    monkeypatch.setattr("edlm_engine.checkpoints.template_sandbox.BUDGET", 1 << 23)  # the same, and sooner
    with pytest.raises(
        SecurityError, match=r"than the sandbox allows|bits|precision|width|encoding|more than"
    ):
        render(source)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "source",
    [
        "{% set r = range(99999) %}{% for a in r %}{% for b in r if false %}{% endfor %}{% endfor %}",
        "{% set r = range(99999) %}{% for a in r %}{{ r|select('none')|first }}{% endfor %}",
        "{% set r = range(99999) %}{% for a in r %}{{ r[a].x or -1 in [a] }}{% endfor %}",
    ],
)
def test_time_is_bounded(source):
    start = time.monotonic()
    with pytest.raises(SecurityError, match=r"it takes longer than 0\.1 s"):
        render(source, work=10**9, seconds=0.1)
    assert time.monotonic() - start < 20  # one iteration more, not all


def test_budget_grows_with_the_messages():
    source = "{% set text = 'x' * 9000000 %}{% for i in range(20) %}{% set x = text ~ i %}{% endfor %}done"
    with pytest.raises(SecurityError, match="more than the sandbox allows"):
        render(source)
    assert render(source, work=9_000_000) == "done"


def test_nothing_is_computed_while_compiling():
    code = TemplateSandbox().compile("{{ 2 ** 5 }}{{ 'a'|center(9) }}{{ 'a' * 3 }}{{ 3 + 4 }}", raw=True)
    assert "'center'" in code and "environment.call_binop(context, '**', 2, 5)" in code


def test_sandboxes_share_nothing():
    one, other = TemplateSandbox(), TemplateSandbox()
    one.from_string("{{ ('x' * 60000000)|length }}").render()
    assert other.from_string("{{ ('x' * 60000000)|length }}").render() == "60000000"
