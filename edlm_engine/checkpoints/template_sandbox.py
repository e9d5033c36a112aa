"""The Jinja environment of chat templates: what transformers offers them, with bounds on what it may cost."""

import json
import time
from datetime import datetime
from functools import wraps

import jinja2
from jinja2 import pass_context
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.runtime import Macro, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEscapeFormatter, SandboxedFormatter
from jinja2.utils import Namespace
from markupsafe import Markup

from .template_costs import (
    CONSUMING,
    LONG,
    filter_cost,
    format_spec_cost,
    is_container,
    method_cost,
    operator_cost,
    refuse_above,
    size,
    weigh,
)
from .template_syntax import Generation, Metering

SECONDS = 10.0  # of wall time for one rendering
BUDGET = 1 << 26  # characters of work for one rendering, and
PER_INPUT = 64  # as many for each character of the messages
MAX_SOURCE = 1 << 18  # characters of a template: parsing cannot be interrupted
MAX_KEYS = 1 << 13  # of a dict that a template makes: keys of one hash take quadratic time


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """For one rendering, whose budget it holds: characters of work, and seconds of wall time.

    Every statement list, operator, subscript, filter, test and call of the template pays and looks at the
    clock. What cannot be interrupted is one such operation, whose size the budget bounds, and parsing the
    source, whose length is bounded: some seconds each at worst. `work`: characters of what is rendered, which
    widen the budget.
    """

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, work: int = 0, seconds: float = SECONDS):
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[Generation, "jinja2.ext.loopcontrols"],
            optimized=False,  # constants would be computed while compiling
            finalize=_write,
            cache_size=0,
        )
        self._left = BUDGET + PER_INPUT * work
        self._seconds, self._deadline = seconds, time.monotonic() + seconds
        self.filters["tojson"] = self._to_json
        self.filters = {name: self._guarded_filter(name, f) for name, f in self.filters.items()}
        self.tests = {name: self._guarded_test(f) for name, f in self.tests.items()}
        self.globals |= {
            "raise_exception": _raise, "strftime_now": self._strftime_now, "dict": _Dict(),
            "namespace": _Namespace, "lipsum": self._lipsum,
        }  # fmt: skip
        self._lorem_ipsum = jinja2.defaults.DEFAULT_NAMESPACE["lipsum"]

    def spend(self, cost: int):
        """Pay for `cost` characters. Raises SecurityError when the budget or the time is used up."""
        refuse_above(self._left, cost)
        self._left -= cost
        if time.monotonic() > self._deadline:
            raise SecurityError(f"it takes longer than {self._seconds:g} s")

    def _made(self, value):
        """`value`, an operation's result, paid for."""
        self.spend(size(value))
        return value

    def check(self, *values):
        """Refuse values that are endless to compare or to hash."""
        for value in values:
            if is_container(value):
                weigh(value, self._left)

    # What the metered syntax tree calls; each takes the context first.

    def metered_spend(self, context, cost):
        self.spend(cost)

    def metered_value(self, context, value):
        self.check(value)
        return value

    def metered_slice(self, context, value):
        return self._made(value)

    def metered_concat(self, context, *values):
        self.spend(sum(weigh(value, self._left) for value in values))
        return markup_join(values) if context.eval_ctx.autoescape else str_join(values)

    # What compiled templates call.

    def _parse(self, source, name, filename):
        if len(source) > MAX_SOURCE:
            raise SecurityError(f"it has {len(source)} characters, more than {MAX_SOURCE}")
        tree = Metering().visit(super()._parse(source, name, filename))
        return tree.set_environment(self)

    def call_binop(self, context, operator, left, right):
        self.spend(LONG + operator_cost(operator, left, right, self._left))
        return super().call_binop(context, operator, left, right)

    def getitem(self, obj, argument):
        self.spend(1)
        if isinstance(argument, tuple):
            self.check(argument)
        return super().getitem(obj, argument)

    def getattr(self, obj, attribute):
        self.spend(1)
        return super().getattr(obj, attribute)

    def wrap_str_format(self, value):
        if (plain := super().wrap_str_format(value)) is None:
            return None
        text = value.__self__
        formatter = (
            _EscapeFormatter(self, escape=text.escape) if isinstance(text, Markup) else _Formatter(self)
        )

        @wraps(value)
        def bounded(*args, **kwargs):
            if value.__name__ == "format_map":
                if kwargs or len(args) != 1:
                    return plain(*args, **kwargs)  # which says what is wrong
                args, kwargs = (), args[0]
            return type(text)(formatter.vformat(text, args, kwargs))

        return bounded

    def call(__self, __context, __obj, *args, **kwargs):
        owner = getattr(__obj, "__self__", None)
        if owner is __self and __obj.__name__.startswith("metered_"):
            return __obj(__context, *args)
        __self.spend(LONG)
        if not isinstance(__obj, Macro):
            __self.check(*args, *kwargs.values())
        if isinstance(owner, list | tuple):  # count() and index() compare
            __self.check(*(owner for arg in args if is_container(arg)))
        if isinstance(owner, str | bytes | int) or owner is dict:
            if args and hasattr(args[0], "__next__"):  # of join() and fromkeys()
                args = (list(args[0]), *args[1:])
            given = (*args, *kwargs.values())
            __self.spend(method_cost(__obj.__name__, owner, given, __self._left))
            return __self._made(super().call(__context, __obj, *args, **kwargs))
        return super().call(__context, __obj, *args, **kwargs)

    def _guarded_filter(self, name, function):
        lead = int(hasattr(function, "jinja_pass_arg"))  # the context or the like comes before the value

        def guarded(*args, **kwargs):
            before, value, rest = args[:lead], args[lead], args[lead + 1 :]
            self.spend(LONG)
            if name in CONSUMING and (hasattr(value, "__next__") or isinstance(value, range)):
                value = list(value)
            given = (*rest, *kwargs.values())
            self.check(*given)
            self.spend(filter_cost(name, value, given, self._left))
            result = function(*before, value, *rest, **kwargs)
            return result if result is value else self._made(result)

        return _passed_as(function, guarded)

    def _guarded_test(self, function):
        lead = int(hasattr(function, "jinja_pass_arg"))

        def guarded(*args, **kwargs):
            value, rest = args[lead], args[lead + 1 :]
            self.spend(1)
            if rest:  # a comparison
                self.check(value, *rest)
            if isinstance(value, str | bytes):  # divisibleby, even and odd of a text format it
                self.spend(operator_cost("%", value, rest[0] if len(rest) == 1 else 2, self._left))
            return function(*args, **kwargs)

        return _passed_as(function, guarded)

    def _to_json(self, x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        self.spend(2 * weigh(x, self._left))
        self.spend(indent if isinstance(indent, int) else 0)
        options = {"ensure_ascii": ensure_ascii, "separators": separators, "sort_keys": sort_keys}
        if indent is None and separators is None:
            return json.dumps(x, **options)
        chunks = []
        for chunk in json.JSONEncoder(indent=indent, **options).iterencode(x):
            self.spend(len(chunk))
            chunks.append(chunk)
        return "".join(chunks)

    def _strftime_now(self, format):
        self.spend(256 * len(format))  # as much as Python lets a directive grow
        return datetime.now().strftime(format)

    def _lipsum(self, n=5, html=True, min=20, max=100):
        self.spend(LONG * n * max)
        return self._lorem_ipsum(n, html, min, max)


def _passed_as(function, guarded):
    """`guarded`, which Jinja then gives the same first argument as `function`."""
    if hasattr(function, "jinja_pass_arg"):
        guarded.jinja_pass_arg = function.jinja_pass_arg
    return guarded


@pass_context
def _write(context, value):
    """Every value that a template writes; with the context, so that none is written while compiling."""
    environment = context.environment
    environment.spend(weigh(value, environment._left))
    return value


def _raise(message):
    raise TemplateError(message)


class _Dict:
    """`dict` of templates, without the type's attributes."""

    def __call__(self, *args, **kwargs):
        if args:
            args = (args[0] if isinstance(args[0], dict) else list(args[0]), *args[1:])
            refuse_above(MAX_KEYS, len(args[0]))
        return dict(*args, **kwargs)

    def fromkeys(self, keys, *value):
        keys = list(keys)
        refuse_above(MAX_KEYS, len(keys))
        return dict.fromkeys(keys, *value)


class _Namespace(Namespace):
    """`namespace` of templates: no name in it begins with an underscore."""

    def __init__(*args, **kwargs):  # `self` may be a name in it
        self, args = args[0], args[1:]
        values = dict(*args, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name, value):
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name):
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r:.40}, whose first character is an underscore")


class _BoundedFields:
    """A formatter whose every field is paid for."""

    def convert_field(self, value, conversion):
        self._env.spend(weigh(value, self._env._left))
        return super().convert_field(value, conversion)

    def format_field(self, value, format_spec):
        self._env.spend(format_spec_cost(format_spec) + weigh(value, self._env._left))
        return super().format_field(value, format_spec)


class _Formatter(_BoundedFields, SandboxedFormatter):
    pass


class _EscapeFormatter(_BoundedFields, SandboxedEscapeFormatter):
    pass
