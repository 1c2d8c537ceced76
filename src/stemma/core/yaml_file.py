"""YAML with a line number for every key, turned into strict configuration.

The file is composed, not loaded: no tag can build an object, a key that stands twice is seen, and
every value keeps its place. A plain scalar takes the type of its field, so `1e-4`, `6M` and `2GiB`
are numbers where a number is wanted and `no` is never a boolean by accident; a quoted scalar is
always a string. Overrides such as `base.learning_rate=1e-3` replace values in the composed tree
and are checked by the same rules.
"""

import itertools
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import ValidationError

from stemma.core.config import StrictModel, complaint
from stemma.core.errors import UsageError, nearest
from stemma.core.files import resource_error

MAX_BYTES = 4 << 20
MAX_DEPTH = 40
MAX_NODES = 100_000
UNITS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
UNITS |= {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
UNITS |= {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
NUMBER = re.compile(r"([-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)([A-Za-z]*)")
NULLS = ("", "~", "null")
SIMPLER = "write it without so much nesting"
COLUMN = re.compile(r"(?<=\d):\d+$")

Model = TypeVar("Model", bound=StrictModel)


@dataclass
class Node:
    """A value with its place: `value` is text, a list of nodes, or a dict of nodes by key."""

    value: str | list["Node"] | dict[str, "Node"]
    place: str
    quoted: bool = False
    key_places: dict[str, str] = field(default_factory=dict)


def read_yaml(path: Path) -> Node:
    """Compose a YAML file. Raises UsageError with `file:line:column` for anything malformed."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise resource_error(error, path) from error
    if len(raw) > MAX_BYTES:
        what = f"{len(raw)} bytes are too many for a recipe (at most {MAX_BYTES})"
        raise UsageError(what, place=path, fix="see `stemma init`")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UsageError("not UTF-8 text", place=f"{path}:{line}", fix="save as UTF-8") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Node:
    """Compose YAML text; `name` stands for the file in messages."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise UsageError(
            f"not YAML ({error.problem or error})",
            place=place,
            fix="check indentation: spaces only, no tabs",
        ) from error
    except RecursionError as error:
        raise UsageError("nested too deeply", place=name, fix=SIMPLER) from error
    except yaml.YAMLError as error:
        raise UsageError(f"not YAML ({error})", place=name, fix="save as plain text") from error
    if root is None:
        raise UsageError("the file is empty", place=name, fix="see `stemma init`")
    return convert(root, name, depth=0, count=itertools.count())


def convert(node: yaml.Node, name: str, *, depth: int, count: Iterator[int]) -> Node:
    """Turn PyYAML's node into ours, refusing tags, alias bombs and double keys."""
    place = f"{name}:{node.start_mark.line + 1}"
    if depth > MAX_DEPTH or next(count) > MAX_NODES:  # aliases of aliases grow without bound
        raise UsageError("nested too deeply, or too many values", place=place, fix=SIMPLER)
    if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.startswith(
        "tag:yaml.org,2002:python"
    ):
        raise UsageError(f"the tag {node.tag} is refused", place=place, fix="remove the tag")
    if isinstance(node, yaml.ScalarNode):
        return Node(node.value, place, quoted=node.style is not None)
    if isinstance(node, yaml.SequenceNode):
        return Node(
            [convert(item, name, depth=depth + 1, count=count) for item in node.value], place
        )
    entries: dict[str, Node] = {}
    places: dict[str, str] = {}
    for key_node, value_node in node.value:
        key_place = f"{name}:{key_node.start_mark.line + 1}:{key_node.start_mark.column + 1}"
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
        if not isinstance(key, str):
            raise UsageError("a key must be a plain word", place=key_place, fix="see `stemma init`")
        if key in entries:
            raise UsageError(
                f"the key {key} stands twice (first at {places[key]})",
                place=key_place,
                fix="remove one of them",
            )
        places[key] = key_place
        entries[key] = convert(value_node, name, depth=depth + 1, count=count)
    return Node(entries, place, key_places=places)


def override(root: Node, assignment: str) -> None:
    """Apply `key.path=value` to a composed tree. Absent keys are added, and checked later."""
    path, sign, text = assignment.partition("=")
    place = f"override {assignment}"
    if not sign or not path:
        fix = "such as base.tokens=200k"
        raise UsageError("an override is written key.path=value", place=place, fix=fix)
    value = parse_yaml(text, place) if text.strip() else Node("", place)
    value.place = place
    here = root
    *parents, last = path.split(".")
    for part in parents:
        if not isinstance(here.value, dict):
            break
        if part not in here.value:
            here.value[part], here.key_places[part] = Node({}, place), place
        here = here.value[part]
    if not isinstance(here.value, dict):
        fix = f"set {'.'.join(parents)} itself"
        raise UsageError(f"{'.'.join(parents)} holds no keys", place=place, fix=fix)
    here.value[last] = value
    here.key_places[last] = place


def at(node: Node, key: str) -> str:
    """`file:line: key` for messages."""
    place = COLUMN.sub("", node.key_places.get(key, node.place))
    return f"{place}: {key}"


def build(model: type[Model], node: Node, *, key: str = "") -> Model:
    """Build a strict model from a node; every error names file, line and key (UsageError)."""
    if not isinstance(node.value, dict):
        raise wrong(node, named(node, key), "keys and values")
    fields = model.model_fields
    for name in node.value:
        if name not in fields:
            raise UsageError("unknown key", place=at(node, name), fix=nearest(name, fields))
    values = {
        name: typed(fields[name].annotation, child, at(node, name))
        for name, child in node.value.items()
    }
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise from_pydantic(error, node, model, values) from error


def from_pydantic(
    error: ValidationError, node: Node, model: type[Model], values: dict[str, Any]
) -> UsageError:
    """The first of pydantic's complaints as one line with its place."""
    key, what, kind = complaint(error, model, values)
    if kind == "missing":
        return UsageError(what, place=f"{node.place}: {key}", fix="add it")
    return UsageError(what, place=at(node, key) if key else node.place, fix="correct it")


def shown(node: Node) -> str:
    """What a node holds, for messages."""
    if isinstance(node.value, str):
        return repr(node.value) if node.quoted else node.value or "nothing"
    return "a list" if isinstance(node.value, list) else "keys and values"


def named(node: Node, key: str) -> str:
    return f"{node.place}: {key}" if key else node.place


def typed(annotation: Any, node: Node, place: str) -> Any:
    """Convert a node to the type its field wants. Raises UsageError naming `place`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return typed(arguments[0], node, place)
    if origin in (Union, types.UnionType):
        return union(arguments, node, place)
    if origin is Literal:
        return choice(arguments, node, place)
    if origin in (list, tuple, Sequence):
        return items(origin, arguments, node, place)
    if origin in (dict, Mapping):
        if not isinstance(node.value, dict):
            raise wrong(node, place, "keys and values")
        return {k: typed(arguments[1], v, f"{place}.{k}") for k, v in node.value.items()}
    if isinstance(annotation, type) and issubclass(annotation, StrictModel):
        if not isinstance(node.value, dict):
            raise wrong(node, place, "keys and values")
        return build(annotation, node)
    return scalar(annotation, node, place)


def items(origin: Any, arguments: tuple[Any, ...], node: Node, place: str) -> Any:
    """A list in YAML as a list or tuple."""
    if not isinstance(node.value, list):
        raise wrong(node, place, "a list")
    inner = [a for a in arguments if a is not Ellipsis]
    fixed = len(inner) > 1
    if fixed and len(inner) != len(node.value):
        raise wrong(node, place, f"a list of {len(inner)}")
    kinds = inner if fixed else inner * len(node.value)
    values = [
        typed(kind, item, f"{place}[{number}]")
        for number, (kind, item) in enumerate(zip(kinds, node.value, strict=True))
    ]
    return tuple(values) if origin is tuple else values


def union(arguments: tuple[Any, ...], node: Node, place: str) -> Any:
    """An optional value, or one of several models told apart by `kind`; one may be usual."""
    if type(None) in arguments and node.value in NULLS and not node.quoted:
        return None
    others = [a for a in arguments if a is not type(None)]
    models = [a for a in others if isinstance(a, type) and issubclass(a, StrictModel)]
    if isinstance(node.value, dict) and models:
        by_kind = {get_args(m.model_fields["kind"].annotation)[0]: m for m in models}
        kind = node.value.get("kind")
        if kind is None:
            usual = [m for m in models if not m.model_fields["kind"].is_required()]
            if len(usual) == 1:
                return build(usual[0], node)
            fix = f"add kind: {', '.join(sorted(by_kind))}"
            raise UsageError("required key is missing", place=f"{place}.kind", fix=fix)
        if kind.value not in by_kind:
            what = f"unknown kind {shown(kind)}"
            raise UsageError(what, place=at(node, "kind"), fix=nearest(str(kind.value), by_kind))
        return build(by_kind[str(kind.value)], node)
    failed: UsageError | None = None
    for kind_of_value in others:
        try:
            return typed(kind_of_value, node, place)
        except UsageError as error:
            failed = failed or error
    raise failed or wrong(node, place, "another type")


def choice(options: tuple[Any, ...], node: Node, place: str) -> Any:
    """One of a few fixed words or numbers."""
    for option in options:
        if node.value == str(option):
            return option
    fix = nearest(str(node.value), [str(o) for o in options])
    raise UsageError(f"unknown value {shown(node)}", place=place, fix=fix)


def wrong(node: Node, place: str, wanted: str) -> UsageError:
    return UsageError(f"expected {wanted}, got {shown(node)}", place=place, fix="correct it")


def scalar(annotation: Any, node: Node, place: str) -> Any:
    """A plain word as bool, int, float or text; a quoted one only as text."""
    if annotation is Any:
        return guessed(node)
    text = node.value
    if not isinstance(text, str):
        raise wrong(node, place, word_for(annotation))
    if annotation is str:
        return text
    if annotation is bool:
        if node.quoted or text not in ("true", "false"):
            raise wrong(node, place, "true or false")
        return text == "true"
    if annotation in (int, float):
        number = None if node.quoted else parse_number(text)
        if number is None or (annotation is int and number != int(number)):
            raise wrong(node, place, word_for(annotation))
        return int(number) if annotation is int else float(number)
    raise TypeError(f"no rule for a field of type {annotation}")


def guessed(node: Node) -> Any:
    """The natural value of a node whose field takes any; a later check knows the type."""
    if isinstance(node.value, dict):
        return {key: guessed(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [guessed(child) for child in node.value]
    if node.quoted:
        return node.value
    if node.value in ("true", "false"):
        return node.value == "true"
    number = parse_number(node.value)
    return node.value if number is None else number


def word_for(annotation: Any) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number"}
    return words.get(annotation, "text")


def parse_number(text: str) -> int | float | None:
    """`1e-4`, `6M`, `2GiB`, `1_000` as numbers; None for anything else.

    >>> parse_number("1.5M"), parse_number("2KiB"), parse_number("abc")
    (1500000, 2048, None)
    """
    found = NUMBER.fullmatch(text.strip())
    if not found or found[2] not in UNITS:
        return None
    digits, unit = found[1].replace("_", ""), UNITS[found[2]]
    if re.fullmatch(r"[-+]?\d+", digits):
        return int(digits) * unit
    number = float(digits) * unit
    if number in (float("inf"), float("-inf")):
        return None
    return int(number) if number == int(number) and abs(number) < 2**53 else number
