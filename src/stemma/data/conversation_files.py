"""The entries of files that hold conversations: JSON Lines, JSON arrays, Parquet, YAML.

An entry is one line, element or row, as plain values, with the line that it begins on. What the
values mean is for `stemma.data.conversation_formats`. A JSON array and a YAML file are held as
text while they are read; a fault inside one ends it, because nothing tells where the next entry
begins. YAML is read as text and lists only: no tag, no alias, `no` is a word and 42 are digits.
"""

import logging
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from stemma.core.errors import UsageError, printable
from stemma.data.documents import LINE_SLACK, require_lines, whole_text
from stemma.data.flaws import Flaw
from stemma.data.jsonl import LineParser, split_lines, too_long
from stemma.data.parquet import read_objects
from stemma.data.sources import Kind, endings, format_of
from stemma.data.streams import as_utf8, read_blocks, size_on_disk

log = logging.getLogger("stemma")

Entry = tuple[int, Any]  # line or row, and the values or the Flaw that stands for them

KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".yml": "yaml",
    ".yaml": "yaml",
    ".parquet": "parquet",
}
LARGEST_LIST = 1 << 30  # bytes of one JSON array, held in memory, if one document may not have more
DEEPEST = 64  # levels of lists and keys in YAML
DIALOGUES = "conversations"  # the key of a YAML file that holds the dialogues


def read_entries(
    path: Path, source: str, *, columns: frozenset[str], limit: int, max_expansion: int
) -> Iterator[Entry]:
    """The entries of a file, in order; of Parquet only these columns.

    Raises UsageError for an unknown ending, Flaw where the rest of the file is lost.
    """
    form = format_of(path, KINDS)
    if form is None:
        raise UsageError(f"unknown ending {path.suffix!r}", place=source, fix=endings(KINDS))
    if form.kind == "parquet":
        yield from read_objects(path, columns, max_expansion=max_expansion, name=source)
        return
    raw = read_blocks(path, form.compression, max_expansion=max_expansion, name=source)
    blocks = as_utf8(raw)
    if form.kind == "yaml":
        yield from yaml_entries(whole_text(blocks, limit, size_on_disk(path)))
        return
    parser, warned = LineParser("", limit), False
    for number, value in _json_entries(blocks, form.kind, parser, limit, size_on_disk(path)):
        if parser.repeated and not warned:
            key, warned = printable(parser.repeated), True
            log.warning("%s:%d: the key %s comes twice; its last value counts", source, number, key)
        yield number, value


def _json_entries(
    blocks: Iterator[bytes], kind: Kind, parser: LineParser, limit: int, size: int
) -> Iterator[Entry]:
    """The lines of a file, or the elements of an array where a .json file is one."""
    if kind == "json":
        head = b""
        while not head.strip() and (block := next(blocks, None)) is not None:
            head += block
        blocks = chain([head], blocks)
        if head.lstrip()[:1] == b"[":
            yield from list_entries(whole_text(blocks, max(limit, LARGEST_LIST), size), parser)
            return
    unsure = kind == "json"
    with closing(split_lines(blocks, limit + LINE_SLACK)) as lines:
        for number, line in lines:
            if line is not None and not line.strip():
                continue
            if unsure:
                require_lines(line, parser)
                unsure = False
            yield number, _line_value(number, line, parser, limit)


def _line_value(number: int, line: bytes | None, parser: LineParser, limit: int) -> Any:
    if line is None:
        return too_long(limit, line=number)
    try:
        return parser.parse(line)
    except Flaw as flaw:
        flaw.line = number
        return flaw


def list_entries(text: str, parser: LineParser) -> Iterator[Entry]:
    """The elements of a JSON array and their lines. Raises Flaw at the first that is broken."""
    place = _skip(text, 0) + 1
    line, counted = 1, 0
    comma = False
    while True:
        place = _skip(text, place)
        line, counted = line + text.count("\n", counted, place), place
        if text[place : place + 1] == "]" and not comma:
            break
        try:
            value, end = parser.parse_at(text, place)
        except Flaw as flaw:
            flaw.line, flaw.ends_file = flaw.line or line, True
            raise
        yield line, value
        place = _skip(text, end)
        comma = text[place : place + 1] == ","
        if not comma and text[place : place + 1] != "]":
            raise _broken(text, place, "not JSON: Expecting ',' or ']'")
        place += comma
    if _skip(text, place + 1) < len(text):
        raise _broken(text, _skip(text, place + 1), "not JSON: something follows the list")


def _skip(text: str, place: int) -> int:
    """The next place that holds no white space."""
    while text[place : place + 1] in (" ", "\t", "\r", "\n"):
        place += 1
    return place


def _broken(text: str, place: int, what: str) -> Flaw:
    line = text.count("\n", 0, place) + 1
    column = place - text.rfind("\n", 0, place)
    return Flaw(what, line=line, column=column, ends_file=True)


def yaml_entries(text: str) -> Iterator[Entry]:
    """The items under `conversations`, or of a list that is the whole file. Raises Flaw."""
    try:
        with closing(_yaml_items(text)) as items:
            yield from items
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (None, None)
        what, fix = f"not YAML: {error.problem or error}", "indent with spaces, quote odd texts"
        raise Flaw(what, line=line, column=column, fix=fix, ends_file=True) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise Flaw(f"not YAML: {error.reason}", line=line, ends_file=True) from error


def _yaml_items(text: str) -> Generator[Entry]:
    events = yaml.parse(text, Loader=yaml.SafeLoader)
    seen: list[str] = []
    found = False
    for event in events:
        if isinstance(event, yaml.SequenceStartEvent):
            found = True
            yield from _sequence(events)
        elif isinstance(event, yaml.MappingStartEvent):
            for key in events:
                if isinstance(key, yaml.MappingEndEvent):
                    break
                if not isinstance(key, yaml.ScalarEvent):
                    what, fix = "a key is no plain word", "write key: value"
                    raise Flaw(what, line=_line(key), fix=fix, ends_file=True)
                value = next(events)
                if key.value == DIALOGUES and isinstance(value, yaml.SequenceStartEvent):
                    found = True
                    yield from _sequence(events)
                else:
                    seen.append(printable(key.value))
                    _whole(value, events)
    if not found:
        what = f"no list under the key {DIALOGUES!r} (keys: {', '.join(seen[:8]) or 'none'})"
        raise Flaw(what, fix="see the format dialogues", ends_file=True, missing_key=True)


def _sequence(events: Iterator[yaml.Event]) -> Iterator[Entry]:
    """The items up to the end of a sequence that has begun."""
    for event in events:
        if isinstance(event, yaml.SequenceEndEvent):
            return
        line = _line(event)
        whole = _whole(event, events)
        try:
            value = _value(iter(whole), 0)
        except Flaw as flaw:
            yield line, flaw
            continue
        if isinstance(value, str):  # one dash too few, and the answer has become part of the text
            value = Flaw("expected a list of turns, got a text", fix="begin it with two dashes")
        yield line, value


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


def _whole(first: yaml.Event, events: Iterator[yaml.Event]) -> list[yaml.Event]:
    """The events of one value, the first of which is known."""
    whole, depth = [first], 0
    while True:
        depth += isinstance(whole[-1], yaml.CollectionStartEvent)
        depth -= isinstance(whole[-1], yaml.CollectionEndEvent)
        if depth == 0:
            return whole
        whole.append(next(events))


def _value(events: Iterator[yaml.Event], depth: int) -> Any:
    """Text, None, list or dict of the events of one value. Raises Flaw."""
    event = next(events)
    line = _line(event)
    if depth > DEEPEST:
        raise Flaw("nested too deep", line=line)
    if isinstance(event, yaml.AliasEvent):
        raise Flaw(f"the alias *{event.anchor} is refused", line=line, fix="write it out")
    if tag := getattr(event, "tag", None):
        raise Flaw(f"the tag {printable(tag)} is refused", line=line, fix="remove it")
    if isinstance(event, yaml.ScalarEvent):
        nothing = event.style is None and event.value in ("", "~", "null")
        return None if nothing else event.value
    if isinstance(event, yaml.SequenceStartEvent):
        return list(_values(events, depth + 1))
    values = list(_values(events, depth + 1))
    if not all(isinstance(key, str) for key in values[::2]):
        raise Flaw("a key is no plain word", line=line, fix="write key: value")
    return dict(zip(values[::2], values[1::2], strict=True))


def _values(events: Iterator[yaml.Event], depth: int) -> Iterator[Any]:
    """The values up to the end of a list, or the keys and values of a mapping in turn."""
    for event in events:
        if isinstance(event, yaml.CollectionEndEvent):
            return
        yield _value(chain([event], events), depth)
