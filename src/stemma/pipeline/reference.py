"""Every key of a recipe with its type, default and meaning, read from the configuration itself.

`stemma explain` answers from this, and the reference page is generated from it, so neither can
say what the code does not do.
"""

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from stemma import api
from stemma.core.config import StrictModel
from stemma.core.errors import UsageError, nearest
from stemma.pipeline.recipe import KINDS, Recipe


@dataclass(frozen=True)
class Entry:
    """One key."""

    key: str
    type: str
    default: str
    meaning: str

    @property
    def follows(self) -> bool:
        """Whether the key may be left out because its value then follows from other keys."""
        return not self.default and "; default " in self.meaning


def entries() -> list[Entry]:
    """All keys: of a recipe, of each kind of stage, of each family's `model`."""
    found = list(walk("", Recipe))
    for kind, stage in sorted(KINDS.items()):
        found += walk(f"{kind}.", stage)
    for family in api.families():
        found += walk(f"model.{family}.", api.config_class(family))
    return found


def walk(head: str, model: type[StrictModel]) -> Iterator[Entry]:
    """A model's keys, and those of the models inside it."""
    for name, info in model.model_fields.items():
        yield Entry(
            head + name, spelled(info.annotation) + bounds(info), default(info), meaning(info)
        )
        for inner in inner_models(info.annotation):
            tag = inner.model_fields.get("kind")
            label = f"({get_args(tag.annotation)[0]})" if tag else ""
            if model is not Recipe:
                yield from walk(f"{head}{name}{label}.", inner)


def meaning(info: FieldInfo) -> str:
    return info.description or ""


def default(info: FieldInfo) -> str:
    """The default as it would stand in a recipe; empty for a required key."""
    value = info.default
    if value is PydanticUndefined:
        return ""
    if isinstance(value, StrictModel):
        return "see below"
    if value is None:
        return "none"
    if isinstance(value, bool):  # 0 and 1 equal them, and are numbers
        return "true" if value else "false"
    return str(value) if value != () else "[]"


def bounds(info: FieldInfo) -> str:
    """The allowed range in signs."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    parts = [
        f"{sign} {getattr(limit, name):g}"
        for limit in info.metadata
        for name, sign in signs.items()
        if getattr(limit, name, None) is not None
    ]
    return f" ({', '.join(parts)})" if parts else ""


def spelled(annotation: Any) -> str:
    """A type in the words of the recipe."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return spelled(arguments[0])
    if origin is Literal:
        return " | ".join(str(a) for a in arguments)
    if origin in (Union, types.UnionType):
        return " | ".join(spelled(a) for a in arguments if a is not type(None))
    if origin in (tuple, list):
        return f"list of {spelled(arguments[0])}"
    if origin is dict:
        return "keys and values"
    words = {int: "whole number", float: "number", str: "text", bool: "true | false", Any: "any"}
    return words.get(annotation, "keys and values")


def inner_models(annotation: Any) -> list[type[StrictModel]]:
    """The configuration models inside a field's type."""
    if isinstance(annotation, type) and issubclass(annotation, StrictModel):
        return [annotation]
    return [m for a in get_args(annotation) for m in inner_models(a)]


def explain(key: str) -> list[Entry]:
    """Entries whose key is, or ends with, `key`; a stage's own name may stand for its kind.

    Raises UsageError with the nearest key where nothing fits.
    """
    known = entries()
    tail = key.rsplit(".", 1)[-1]
    for wanted in (key, key.partition(".")[2], tail):
        fitting = [e for e in known if wanted and fits(e.key, wanted)]
        if fitting:
            return fitting
    names = sorted({e.key.rsplit(".", 1)[-1] for e in known})
    raise UsageError("no such key", place=f"explain {key}", fix=nearest(tail, names))


def fits(key: str, wanted: str) -> bool:
    return key == wanted or key.endswith(f".{wanted}") or key.startswith(f"{wanted}.")
