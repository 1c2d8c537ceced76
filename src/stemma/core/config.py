"""Strict configuration: unknown keys, wrong types and impossible values stop at the door.

`StrictModel` is the one base of every configuration value: frozen, keyword-only, unknown keys
refused. Recipes come through `stemma.core.yaml_file`, which knows the line of every key.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

NEARBY = 1 << 10  # how far from a number that does not fit one is looked for that does


class StrictModel(BaseModel):
    """A frozen configuration value that refuses unknown keys and silent conversions."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False
    )


class Misfit(ValueError):
    """Two numbers that do not go together; `names` is what the message calls them."""

    def __init__(self, message: str, names: str) -> None:
        super().__init__(message)
        self.names = names


def multiple(name: str, value: int, of_name: str, of: int) -> None:
    """Refuse a number that another does not divide, naming both: for use in validators.

    >>> multiple("width", 64, "num_heads", 4)
    """
    if value % of:
        of_what = of_name if of_name.startswith(str(of)) else f"{of_name} ({of})"
        message = f"{name} ({value}) must be a multiple of {of_what}"
        raise Misfit(message, f"{name} {of_name}")


def nearest_valid(kind: type[BaseModel], numbers: Mapping[str, Any], names: str) -> list[str]:
    """For each number that a message names, the nearest value with which all of them fit.

    `names` is the text in which fields are looked for. A value is nearest that is least away; a
    field for which none is found nearby is left out.
    """
    found: list[tuple[int, str]] = []
    for field in kind.model_fields:
        number = numbers.get(field)
        if type(number) is not int or not re.search(rf"\b{field}\b", names):
            continue
        for away in range(1, NEARBY):
            near = [n for n in (number - away, number + away) if fits(kind, {**numbers, field: n})]
            if near:
                found.append((away, f"{field}={near[0]}"))
                break
    return [words for _, words in sorted(found)]


def fits(kind: type[BaseModel], numbers: Mapping[str, Any]) -> bool:
    """Whether a configuration takes these numbers."""
    try:
        kind.model_validate(dict(numbers))
    except ValidationError:
        return False
    return True


class Complaint(NamedTuple):
    """What is wrong with a configuration: its key, "" where several disagree, and a sentence.

    `kind` is pydantic's name of the mistake, such as "missing" or "extra_forbidden".
    """

    key: str
    what: str
    kind: str


def complaint(
    error: ValidationError,
    kind: type[BaseModel] | None = None,
    numbers: Mapping[str, Any] | None = None,
) -> Complaint:
    """The first of pydantic's complaints in our words; an unknown key comes before all others.

    With the class and what it was given, numbers that do not fit are told with the nearest that do.
    """
    every = error.errors(include_url=False)
    first = next((each for each in every if each["type"] == "extra_forbidden"), every[0])
    key, type_ = place_of(first["loc"]), first["type"]
    own = {"missing": "required key is missing", "extra_forbidden": "unknown key"}
    if type_ in own:
        return Complaint(key, own[type_], type_)
    what, value = first["msg"].removeprefix("Value error, "), first["input"]
    got = f" (got {value!r:.60})" if key and not isinstance(value, dict) else ""
    cause = first.get("ctx", {}).get("error")
    if kind is not None and numbers is not None and isinstance(cause, Misfit):
        near = nearest_valid(kind, numbers, cause.names)
        got += f", such as {' or '.join(near[:2])}" if near else ""
    return Complaint(key, what[:1].lower() + what[1:] + got, type_)


def place_of(location: tuple[int | str, ...]) -> str:
    """The key of a mistake: "width", or "rope_scaling.context" inside of another.

    Between the two pydantic puts the tag by which a form was chosen, which is no key.
    """
    names = [str(part) for part in location if isinstance(part, str)]
    return ".".join(dict.fromkeys((names[0], names[-1]))) if names else ""


def with_hidden(numbers: Any) -> Any:
    """Numbers whose `hidden` is four widths unless it is given: in validators before all others.

    >>> with_hidden({"width": 8})
    {'hidden': 32, 'width': 8}
    """
    if isinstance(numbers, dict) and isinstance(numbers.get("width"), int):
        return {"hidden": 4 * numbers["width"], **numbers}
    return numbers


def with_heads(numbers: Any) -> Any:
    """Numbers with a key-value head for each head, of width / num_heads, unless they are given.

    ValueError where that is no whole number: in validators before all others.

    >>> with_heads({"width": 8, "num_heads": 2, "head_dim": 6})
    {'num_kv_heads': 2, 'head_dim': 6, 'width': 8, 'num_heads': 2}
    """
    if not isinstance(numbers, dict):
        return numbers
    width, heads = numbers.get("width"), numbers.get("num_heads")
    if not (isinstance(width, int) and isinstance(heads, int) and heads > 0):
        return numbers
    if "head_dim" not in numbers:
        multiple("width", width, "num_heads", heads)
    return {"num_kv_heads": heads, "head_dim": width // heads, **numbers}


def rotary_heads(num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    """Refuse groups of heads of which one is smaller, and features of which one has no pair."""
    multiple("num_heads", num_heads, "num_kv_heads", num_kv_heads)
    multiple("head_dim, by default width / num_heads", head_dim, "2 (rotary pairs)", 2)


def windowed_blocks(window: int | None, windowed: tuple[int, ...], depth: int) -> None:
    """Refuse a window without blocks, and blocks that have none, are not there or named twice.

    Blocks are counted from 0 and ascend, so that one network has one way to say it.
    """
    if bool(windowed) != (window is not None):
        what = f"{len(windowed)} blocks are windowed, but window is {window}"
        raise ValueError(f"{what}: give both or neither")
    if windowed != (once := tuple(sorted(set(windowed)))):
        what = f"windowed is {windowed!r:.60}; name every block once, in order, as {once!r:.60}"
        raise ValueError(what)
    if windowed and windowed[-1] >= depth:
        raise ValueError(f"windowed block {windowed[-1]} is not one of {depth}")
