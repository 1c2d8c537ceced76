"""The filters that a chat template may use, each of which keeps the marks of tainted text.

Those that build text are written here, after Jinja's documentation of each; those that only choose
or order are Jinja's own, wrapped: if one of them should ever give plain text back for content, the
rendering stops. `tojson` writes what `json.dumps` writes, as chat templates expect, without HTML
escapes. A filter that is not listed here is unknown.
"""

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jinja2 import Undefined, pass_environment
from jinja2.filters import FILTERS as JINJA_FILTERS
from jinja2.filters import make_attrgetter

from stemma.data.tainted import (
    Tainted,
    check_length,
    content,
    filled_in,
    joined,
    literal,
    lost,
    plain,
)
from stemma.data.template_limits import Budget, budget

CHOOSING = (
    *("abs", "d", "default", "dictsort", "first", "items", "last", "length"),
    *("count", "list", "map", "max", "min", "reject", "rejectattr", "reverse", "select"),
    *("selectattr", "sort", "unique"),
)
WALKING = frozenset(  # over a text character by character, each a new value
    {"join", "list", "map", "max", "min", "reject", "rejectattr", "select", "selectattr", "sort"}
    | {"title", "unique"}
)
MOST_DIGITS = 20
WORD = re.compile(r"([-\s({\[<]+)")  # where `title` begins a new word, as in Jinja


def shown(value: Any) -> Tainted:
    """A value as it is printed. Lists and dictionaries are content where they hold any."""
    if isinstance(value, str):
        return literal(value)
    if isinstance(value, Undefined):
        return literal(str(value))
    if value is None or isinstance(value, int | float):
        return literal(str(value))
    if isinstance(value, list | tuple | dict):
        return whole(repr(plainly(value)), value)
    return lost(f"printing of {type(value).__name__}")


def whole(text: str, source: Any) -> Tainted:
    """Text made of a value: content as a whole where the value holds any.

    To cut it finer would cut tokens finer than a model writes them.
    """
    return content(text) if has_content(source) else literal(text)


def has_content(value: Any) -> bool:
    """Whether text of a person is anywhere in a value."""
    if isinstance(value, str):
        return isinstance(value, Tainted) and value.holds_content
    if isinstance(value, Mapping):
        return any(has_content(key) or has_content(entry) for key, entry in value.items())
    return isinstance(value, list | tuple) and any(has_content(entry) for entry in value)


def plainly(value: Any) -> Any:
    """The same value with plain strings."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, dict):
        return {plainly(key): plainly(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plainly(entry) for entry in value)
    return value


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> Tainted:
    """JSON of a value, as `json.dumps` writes it."""
    if isinstance(indent, int) and indent > MOST_DIGITS:
        raise ValueError(f"tojson: an indent of {indent}")
    text = json.dumps(
        plainly(value),
        ensure_ascii=ensure_ascii,
        indent=plainly(indent),
        separators=plainly(separators),
        sort_keys=sort_keys,
    )
    return whole(text, [value, indent, separators])


def indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> Tainted:
    """Each line but the first moved to the right; `blank` lines too where asked."""
    step = literal(width) if isinstance(width, str) else literal(" ") * width
    lines = joined((shown(text), "\n")).splitlines()
    check_length(sum(map(len, lines)) + len(lines) * (len(step) + 1))
    moved = [
        joined((step, line)) if (number or first) and (line or blank or not number) else line
        for number, line in enumerate(lines)
    ]
    return literal("\n").join(moved)


@pass_environment
def join(
    environment: Any, value: Iterable[Any], d: str = "", attribute: str | int | None = None
) -> Tainted:
    """All entries, or an attribute of each, as one text with `d` between them."""
    entries = list(value)
    if attribute is not None:
        entries = list(map(make_attrgetter(environment, attribute), entries))
    return shown(d).join(shown(entry) for entry in entries)


def title(text: Any) -> Tainted:
    """Each word with a capital letter, the rest of it small."""
    word, end, parts = shown(text), 0, list[str]()
    for found in [*WORD.finditer(word), None]:
        start = len(word) if found is None else found.start()
        piece = word[end:start]
        parts += (piece[:1].upper(), piece[1:].lower())
        if found is not None:
            end = found.end()
            parts.append(word[start:end])
    return joined(parts)


def round_number(value: float, precision: int = 0, method: str = "common") -> float:
    """A number with so many digits after the point."""
    if abs(precision) > MOST_DIGITS:
        raise ValueError(f"round: {precision} digits")
    rounded: float = JINJA_FILTERS["round"](value, precision, method)
    return rounded


def total(values: Iterable[Any], attribute: None = None, start: float = 0) -> float:
    """The sum of numbers; lists are not added, since doubling hides there."""
    numbers = list(values)
    if attribute is not None or not all(isinstance(n, int | float) for n in [start, *numbers]):
        raise TypeError("sum: only numbers can be added")
    return sum(numbers, start)


def kept(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, charged for what it makes, and stopped where it would lose marks."""

    charge = Budget.walked if name in WALKING else Budget.weighed

    @functools.wraps(function)
    def apply(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            charge(budget(), value)
        result = function(*args, **kwargs)
        if isinstance(result, Iterator):
            result = list(result)
        if type(result) is str:
            if has_content(args) or has_content(kwargs):
                lost(f"filter {name}")
            result = literal(result)
        return budget().held(result)

    return apply


WRITTEN: dict[str, Callable[..., Any]] = {
    "capitalize": lambda text: shown(text).capitalize(),
    "center": lambda text, width=80: shown(text).center(width),
    "float": lambda value, default=0.0: JINJA_FILTERS["float"](plainly(value), default),
    "format": lambda pattern, *values: filled_in(shown(pattern), values),
    "indent": indent,
    "int": lambda value, default=0, base=10: JINJA_FILTERS["int"](plainly(value), default, base),
    "join": join,
    "lower": lambda text: shown(text).lower(),
    "replace": lambda text, old, new, count=-1: shown(text).replace(
        shown(old), shown(new), -1 if count is None else count
    ),
    "round": round_number,
    "safe": shown,
    "string": shown,
    "sum": total,
    "title": title,
    "tojson": tojson,
    "trim": lambda text, chars=None: shown(text).strip(chars),
    "upper": lambda text: shown(text).upper(),
}
FILTERS = {
    name: kept(name, function)
    for name, function in [*((name, JINJA_FILTERS[name]) for name in CHOOSING), *WRITTEN.items()]
}
