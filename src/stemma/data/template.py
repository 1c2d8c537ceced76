"""Chat templates: Jinja text that comes with a model, run as the stranger's program it is.

The environment is Jinja's immutable sandbox with what transformers adds for chat templates (trimmed
blocks, `break` and `continue`, `generation` blocks, `tojson`, `raise_exception`, `strftime_now`),
made narrower: attributes and functions are those of a list, there are no other templates, and
every loop, call and value is charged to a budget. All text is `Tainted`: strings of the template
are marked as such where the template is compiled, strings of the conversation where they come in,
and the result says for each character which of the two it is.
"""

import functools
import re
import types
from collections.abc import Callable, ItemsView, Iterable, KeysView, Mapping, Sized, ValuesView
from datetime import date, datetime
from datetime import time as time_of_day
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.tests import TESTS as JINJA_TESTS
from jinja2.utils import Namespace

from stemma.core.errors import ModelError
from stemma.data.flaws import Flaw
from stemma.data.tainted import (
    LONGEST,
    Tainted,
    TaintLost,
    TooLong,
    content,
    joined,
    literal,
    plain,
)
from stemma.data.template_filters import FILTERS, has_content, shown
from stemma.data.template_limits import BUDGET, DEPTH, Budget, OverBudget, budget

MAX_SOURCE = 1 << 18  # characters; the longest template in use has about a tenth
MAX_BITS = 4_096  # of a whole number
MAX_FORMAT = 100  # characters of a date's format
PLACE = "chat template"
FIX = "correct the template, or do without: template: chatml in a recipe, --raw at a prompt"

ATTRIBUTES: Mapping[type, frozenset[str]] = {
    Tainted: frozenset(name for name in vars(str) if not name.startswith("_")),
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    list: frozenset({"count", "index"}),
    tuple: frozenset({"count", "index"}),
    LoopContext: frozenset(
        {"changed", "cycle", "depth", "depth0", "first", "index", "index0", "last", "length"}
        | {"nextitem", "previtem", "revindex", "revindex0"}
    ),
}
SPLITTING = ("split", "rsplit", "splitlines")  # make many texts of one
REFUSED_NODES = (
    *(nodes.Block, nodes.Extends, nodes.FromImport, nodes.Import, nodes.Include),
    *(nodes.EvalContextModifier, nodes.ScopedEvalContextModifier),
)
FAULTS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class TaintedCode(CodeGenerator):
    """Jinja's compiler, with every string of the template marked and every value charged."""

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        """A constant; strings become tainted."""
        if isinstance(node.value, str):
            self.write(f"environment.literal({node.value!r})")
        else:
            super().visit_Const(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """The operator `~`."""
        self.write("environment.together((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        """A list, charged for what it holds."""
        self._held(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        """A dictionary, charged for what it holds."""
        self._held(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        """A tuple, charged for what it holds, unless it is a target of an assignment."""
        if node.ctx == "load":
            self._held(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        """An entry, or a slice, which is a new value."""
        if isinstance(node.arg, nodes.Slice):
            self._held(super().visit_Getitem, node, frame)
        else:
            super().visit_Getitem(node, frame)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        """A comparison, or a search by `in`: each side is charged before."""
        weighed = nodes.EnvironmentAttribute("weighed")
        node.expr = nodes.Call(weighed, [node.expr], [], None, None, lineno=node.lineno)
        for operand in node.ops:
            operand.expr = nodes.Call(weighed, [operand.expr], [], None, None, lineno=node.lineno)
        super().visit_Compare(node, frame)

    def _held(self, visit: Callable[..., None], node: nodes.Node, frame: Frame) -> None:
        self.write("environment.held(")
        visit(node, frame)
        self.write(")")

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        """Nothing but the template's own text is computed before there is a budget."""
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write("environment.shown(")

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write(")")


class Generation(Extension):
    """`{% generation %}` blocks, which other trainers take for what is trained: passed through."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """The block's body in a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox that chat templates run in. One serves all: what changes is in the budget."""

    code_generator_class = TaintedCode
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[Generation, LoopControlExtension],
            optimized=False,
            cache_size=0,
        )
        self.filters = dict(FILTERS)
        self.globals = {
            "dict": dictionary,
            "namespace": namespace,
            "raise_exception": raise_exception,
            "range": numbers,
        }
        self.tests = {name: charged_test(test) for name, test in JINJA_TESTS.items()}
        self.literal, self.concat = literal, self.together  # type: ignore[method-assign]

    def _generate(
        self,
        source: nodes.Template,
        name: str | None,
        filename: str | None,
        defer_init: bool = False,
    ) -> str:
        """Python code of a template, after what is not allowed has been refused."""
        for refused in source.find_all(REFUSED_NODES):
            kind = type(refused).__name__.lower()
            raise jinja2.TemplateSyntaxError(f"{kind} has no place in it", refused.lineno)
        for loop in list(source.find_all(nodes.For)):
            counted = nodes.EnvironmentAttribute("counted").set_lineno(loop.lineno)
            loop.iter = nodes.Call(counted, [loop.iter], [], None, None, lineno=loop.lineno)
        return super()._generate(source, name, filename, defer_init)

    def held(self, value: Any) -> Any:
        """Charge for a value."""
        return budget().held(value)

    def weighed(self, value: Any) -> Any:
        """Charge for reading a value."""
        return budget().weighed(value)

    def shown(self, value: Any) -> Tainted:
        """A value as text."""
        return self.held(shown(value))  # type: ignore[no-any-return]

    def together(self, parts: Iterable[Any]) -> Tainted:
        """Values as one text."""
        return self.held(joined(shown(part) for part in parts))  # type: ignore[no-any-return]

    def counted(self, values: Any) -> Any:
        """What a loop goes over, charged in advance."""
        entries: Sized = values if isinstance(values, Sized) else [*values]
        budget().spend(len(entries))
        return entries

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`obj.attribute`: one of the attributes of the list, or an entry."""
        if attribute.startswith("_"):
            raise SecurityError(f"it asks for {plain(attribute)!r}")
        obj = literal(obj) if type(obj) is str else obj
        if attribute in ATTRIBUTES.get(type(obj), ()) or isinstance(obj, Undefined):
            return getattr(obj, attribute)
        if isinstance(obj, Namespace):
            return getattr(obj, attribute, self.undefined(obj=obj, name=plain(attribute)))
        if isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        named = plain(obj) if isinstance(obj, str) else obj  # what a message may name
        return self.undefined(obj=named, name=plain(attribute))

    def getitem(self, obj: Any, argument: Any) -> Any:
        """`obj[argument]`: an entry, or an attribute as in `getattr`."""
        obj = literal(obj) if type(obj) is str else obj
        try:
            if isinstance(obj, dict | list | tuple | str | range | Undefined):
                return obj[argument]
        except (TypeError, LookupError):
            pass
        if isinstance(argument, str):
            return self.getattr(obj, plain(argument))
        return self.undefined(obj=obj, name=str(shown(argument)))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function of ours, a macro, a loop, or a method of the list."""
        if obj in (self.counted, self.weighed):
            return obj(*args)
        self.held(args)
        self.held(kwargs)
        if isinstance(obj, LoopContext):
            args = (self.counted(args[0]), *args[1:]) if args else args
        elif not callable_by_templates(obj):
            raise SecurityError(f"it calls {type(obj).__name__}")
        name, owner = getattr(obj, "__name__", ""), getattr(obj, "__self__", None)
        budget().walked(owner) if name in SPLITTING else budget().weighed(owner)
        result = context.call(obj, *args, **kwargs)
        if isinstance(result, KeysView | ValuesView | ItemsView):
            result = list(result)
        if type(result) is str:
            if has_content(args) or has_content(kwargs):
                raise TaintLost(getattr(obj, "__name__", type(obj).__name__))
            result = literal(result)
        return self.held(result)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`left operator right` for the operators whose results can be large."""
        left = literal(left) if type(left) is str else left
        right = literal(right) if type(right) is str else right
        if isinstance(left, int) and isinstance(right, int):
            check_bits(operator, left, right)
        for value, times in ((left, right), (right, left)):
            if operator == "*" and isinstance(value, list | tuple) and isinstance(times, int):
                budget().spend(max(0, len(value) * times))
        return self.held(super().call_binop(context, operator, left, right))


def charged_test(test: Any) -> Callable[..., Any]:
    """A test of Jinja's, such as `in`, charged for what it looks at."""

    @functools.wraps(test)
    def apply(*args: Any) -> Any:
        for value in args:
            budget().weighed(value)
        return test(*args)

    return apply


def callable_by_templates(obj: Any) -> bool:
    """Whether a template may call this."""
    if isinstance(obj, Macro | Undefined):
        return True
    if isinstance(obj, types.FunctionType):
        return obj.__module__ == __name__
    if not isinstance(obj, types.MethodType | types.BuiltinMethodType):
        return False
    return obj.__name__ in ATTRIBUTES.get(type(obj.__self__), ())


def check_bits(operator: str, left: int, right: int) -> None:
    """Refuse whole numbers that would fill the memory."""
    bits = left.bit_length() + right.bit_length()
    if operator == "**":
        bits = left.bit_length() * max(0, right)
    if bits > MAX_BITS:
        raise OverBudget(f"a number of {bits:,} bits")


# --- functions of templates


def dictionary(*pairs: Any, **entries: Any) -> dict[Any, Any]:
    """`dict(...)`."""
    return dict(*pairs, **entries)


def namespace(*pairs: Any, **entries: Any) -> Namespace:
    """`namespace(...)`: values that a loop may set."""
    made = dict(*pairs, **entries)
    for name in made:
        if not isinstance(name, str) or name.startswith("_"):
            raise SecurityError("it stores a private name")
    return Namespace(made)


def numbers(*bounds: int) -> range:
    """`range(...)` of bounded length."""
    return safe_range(*bounds)


def raise_exception(message: object = "") -> NoReturn:
    """The template refuses the conversation."""
    raise Flaw(f"the chat template refuses it: {plain(shown(message))}")


def date_function(today: date | None) -> Callable[[str], Tainted]:
    """`strftime_now(format)` for a fixed day, or for the moment of the call."""

    def strftime_now(format: str) -> Tainted:  # noqa: A001  (the name that templates use)
        if len(format) > MAX_FORMAT or re.search(r"%\W*\d", format):
            raise ValueError("strftime_now: an unusual format")
        moment = datetime.now() if today is None else datetime.combine(today, time_of_day())
        text = moment.strftime(plain(format))
        return content(text) if has_content(format) else literal(text)

    return strftime_now


# --- from the outside


def given(value: Any, depth: int = 0) -> Any:
    """JSON of a person as a template sees it: the same, with every string content.

    Raises Flaw for what is no JSON or nested too deep.
    """
    if isinstance(value, str):
        return content(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth > DEPTH // 2:
        raise Flaw(f"nested deeper than {DEPTH // 2}")
    if isinstance(value, Mapping):
        return {given(key, depth + 1): given(entry, depth + 1) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [given(entry, depth + 1) for entry in value]
    raise Flaw(f"expected JSON, found {type(value).__name__}")


def measured(value: Any) -> tuple[int, int]:
    """How many entries and how many characters a JSON value has."""
    values = characters = 0
    waiting = [value]
    while waiting:
        one = waiting.pop()
        values += 1
        if isinstance(one, str):
            characters += len(one)
        elif isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple):
            waiting += one
    return values, characters


@lru_cache(maxsize=1)
def environment() -> TemplateEnvironment:
    """The one environment."""
    return TemplateEnvironment()


@lru_cache(maxsize=16)
def compiled(source: str) -> jinja2.Template:
    """A template ready to run. Raises ModelError naming the line where it is no template."""
    if len(source) > MAX_SOURCE:
        raise ModelError(
            f"{len(source):,} characters; at most {MAX_SOURCE:,} are read", place=PLACE, fix=FIX
        )
    try:
        return environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        place = f"{PLACE}:{error.lineno}"
        raise ModelError(f"not a template ({error.message})", place=place, fix=FIX) from error
    except (SyntaxError, RecursionError, MemoryError, ValueError, OverflowError) as error:
        what = f"not a template ({type(error).__name__})"
        raise ModelError(what, place=PLACE, fix=FIX) from error


def render(source: str, variables: dict[str, Any], *, today: date | None = None) -> Tainted:
    """Run a template. Strings among `variables` that are not tainted count as the template's own.

    Raises Flaw where the template refuses the conversation, ModelError where the template is
    at fault: it fails, does too much, reaches out of the sandbox, or loses the marks.
    """
    template = compiled(source)
    context = template.new_context({"strftime_now": date_function(today), **variables})
    limits = Budget(*measured(variables))
    token, longest = BUDGET.set(limits), LONGEST.set(limits.length)
    try:
        return environment().together(template.root_render_func(context))
    except TaintLost as error:
        what = f"it loses track of what a person wrote ({error})"
        raise fault(what, error, template) from error
    except (OverBudget, TooLong) as error:
        raise fault(f"it does too much: {error}", error, template) from error
    except SecurityError as error:
        raise fault(f"it reaches out of the sandbox: {error.message}", error, template) from error
    except (RecursionError, MemoryError) as error:
        raise fault(f"it does too much ({type(error).__name__})", error, template) from error
    except jinja2.TemplateError as error:
        raise fault(f"it fails: {error.message}", error, template) from error
    except FAULTS as error:
        raise fault(f"it fails: {type(error).__name__}: {error}", error, template) from error
    finally:
        BUDGET.reset(token)
        LONGEST.reset(longest)


def fault(what: str, error: BaseException, template: jinja2.Template) -> ModelError:
    """An error of the template, at the line where it was."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = template.get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
    return ModelError(what, place=f"{PLACE}:{line}" if line else PLACE, fix=FIX)
