"""Conversations out of people's files, checked, and split for training and for scoring.

Every conversation knows its file, line and format; a fault is an error or a reject by the option
`bad_lines`, as for documents. Each file has one format, told from the keys of its first entry.

What is held out is chosen by the first thing the user says: two conversations that begin with the
same words are on the same side, so no held-out question was ever trained on. A ledger counts every
conversation: read = in training + held out + dropped.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from pydantic import Field

from stemma.core.config import StrictModel
from stemma.core.errors import DataError
from stemma.core.files import atomic_file, require_writable, sha256_json
from stemma.data.conversation_files import read_entries
from stemma.data.conversation_formats import (
    COLUMNS,
    FORMATS,
    ConversationFormat,
    FormatName,
    as_object,
    convert,
    detect,
    seen,
)
from stemma.data.curate import read_jsonl_documents
from stemma.data.documents import (
    BadLines,
    Faults,
    MaxDocumentBytes,
    MaxExpansion,
    Reject,
    RejectFile,
)
from stemma.data.flaws import Flaw
from stemma.data.jsonl import too_long
from stemma.data.messages import Conversation, parse_conversation
from stemma.data.sources import source_name

log = logging.getLogger("stemma")


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation, where it came from, and how it was written there."""

    conversation: Conversation
    source: str
    line: int
    format: FormatName


class ConversationOptions(StrictModel):
    """How conversations are read, and what an unreadable one means."""

    format: ConversationFormat = "auto"
    bad_lines: BadLines = "error"
    max_document_bytes: MaxDocumentBytes = 64 << 20
    max_expansion: MaxExpansion = 1000


def read_conversations(
    files: Sequence[Path],
    options: ConversationOptions,
    on_reject: Callable[[Reject], None],
    root: Path,
) -> Iterator[Example]:
    """The conversations of `files`, in their order; sources are named relative to `root`.

    Raises DataError at the first fault under `bad_lines: error`, and in any case if nothing was
    read at all; UsageError for a file that is not regular or of unknown ending; ResourceError
    where the machine refuses.
    """
    faults, total = Faults(options.bad_lines, on_reject), 0
    found: dict[str, list[_Reading]] = {}
    for path in files:
        reading = _Reading(options, faults, source_name(path, root))
        yield from reading.examples(path)
        total += reading.good
        if reading.good:
            found.setdefault(str(reading.form), []).append(reading)
    for form, readings in found.items():
        where = readings[0].source if len(readings) == 1 else f"{len(readings)} files"
        count = sum(reading.good for reading in readings)
        log.info("%s: %d conversations of the format %s", where, count, form)
    if total == 0:
        raise faults.nothing("conversations", [source_name(path, root) for path in files])


class _Reading:
    """One pass over one file: its format, as soon as it is known, and what was good."""

    def __init__(self, options: ConversationOptions, faults: Faults, source: str) -> None:
        self.options, self.faults, self.source = options, faults, source
        self.form: FormatName | None = None if options.format == "auto" else options.format
        self.good = 0

    def examples(self, path: Path) -> Iterator[Example]:
        """The good conversations; the faults go to the policy."""
        limit, expansion = self.options.max_document_bytes, self.options.max_expansion
        entries = read_entries(
            path, self.source, columns=COLUMNS, limit=limit, max_expansion=expansion
        )
        try:
            for line, value in entries:
                try:
                    example = self._example(value, line)
                except Flaw as flaw:
                    flaw.line = line if flaw.line is None else flaw.line
                    self.faults.take(flaw, self.source, flaw.reason)
                    continue
                self.good += 1
                yield example
        except Flaw as flaw:
            after = f" after {self.good} conversations" if flaw.ends_file and self.good else ""
            self.faults.take(flaw, self.source, flaw.reason + after)

    def _example(self, value: Any, line: int) -> Example:
        if isinstance(value, Flaw):
            raise value
        entry = as_object(value)
        form = self.form or detect(entry)
        if form is None:
            fix = f"write one of {', '.join(FORMATS)}"
            raise Flaw(f"of no known format {seen(entry)}", fix=fix, missing_key=True)
        conversation = convert(entry, form)
        size = sum(len(message.content) for message in conversation.messages)
        if size > self.options.max_document_bytes:  # of a table; lines are limited already
            raise too_long(self.options.max_document_bytes, size=size)
        self.form = form
        return Example(conversation, self.source, line, form)


class Split(StrictModel):
    """How much is kept from training, and which part."""

    fraction: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="share of the first turns whose conversations are held out; 0: nothing",
    )
    seed: int = Field(default=0, description="seed of the order in which first turns are taken")


@dataclass
class Ledger:
    """Where every conversation went, and from which files and formats they came.

    `trimmed` conversations lost `trailing_messages` messages after the last of the assistant;
    `groups` are different first turns. `overlap` is of held-out conversations that were given.
    """

    read: int = 0
    train: int = 0
    heldout: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    rejected: int = 0
    trimmed: int = 0
    trailing_messages: int = 0
    groups: int = 0
    heldout_groups: int = 0
    overlap: dict[str, int] | None = None
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def balanced(self) -> bool:
        """Whether what was read equals training + held out + dropped."""
        return self.read == self.train + self.heldout + self.dropped.total()

    def to_json(self) -> dict[str, Any]:
        """The ledger as a JSON object."""
        dropped = dict(sorted(self.dropped.items()))
        return {**vars(self), "dropped": dropped, "balanced": self.balanced()}


def prepare(
    examples: Iterable[Example],
    split: Split,
    folder: Path,
    *,
    heldout: Iterable[Example] | None = None,
    strict: bool = False,
    rejects: RejectFile | None = None,
) -> Ledger:
    """Write `train.jsonl`, `heldout.jsonl` and `dropped.jsonl` into `folder`; return the ledger.

    Each line of the first two is {"id", "messages", "tools", "source", "line", "format"}, in
    reading order, with ids that run over all conversations read; each line of the third {"id",
    "source", "line", "reason"}, with "duplicate_of" (an id) for copies. `heldout`, where given, is
    what is held out, instead of a share of the examples; conversations that are on both sides are
    counted and warned of, or under `strict` refused. Without anything held out the file is not
    written. `rejects` is the file that the reader writes: its count goes into the ledger.

    Raises DataError where nothing is left or nothing can be held out, ResourceError where the
    machine refuses; no file is then changed, or only the list of dropped conversations.
    """
    require_writable(folder)
    with atomic_file(folder / "dropped.jsonl") as dropped:
        taking = _Taking(dropped)
        train = taking.keep(examples)
        given = None if heldout is None else taking.keep(heldout)
    ledger = taking.ledger
    ledger.rejected = rejects.count if rejects else 0
    if not train or given == []:
        raise _nothing_left(ledger, "to hold out" if train else "to train on")
    if given is None:
        train, given = _divided(train, split, ledger)
    else:
        _given(train, given, ledger, strict=strict)
    ledger.train, ledger.heldout = len(train), len(given)
    assert ledger.balanced(), f"the ledger does not balance: {ledger}"
    _write(folder / "train.jsonl", train)
    if given:
        _write(folder / "heldout.jsonl", given)
    else:
        (folder / "heldout.jsonl").unlink(missing_ok=True)  # of an earlier split
    return ledger


def read_prepared(path: Path) -> Iterator[Example]:
    """The conversations that `prepare` wrote into a file.

    Raises DataError for a file that is missing or was damaged since.
    """
    again = "run the stage again that made it"
    for number, entry in enumerate(read_jsonl_documents(path, fix=again), 1):
        try:
            place = (entry["source"], entry["line"], entry["format"])
            yield Example(parse_conversation(entry), *place)
        except (Flaw, KeyError, TypeError) as error:
            raise DataError(f"is damaged ({error})", place=f"{path}:{number}", fix=again) from error


def overlap(train: Iterable[Conversation], heldout: Iterable[Conversation]) -> dict[str, int]:
    """How many held-out conversations begin like one in training, and how many are in it whole."""
    turns, whole = set(), set()
    for conversation in train:
        turns.add(first_turn(conversation))
        whole.add(_identity(conversation))
    found = {"first_turns": 0, "conversations": 0}
    for conversation in heldout:
        found["first_turns"] += first_turn(conversation) in turns
        found["conversations"] += _identity(conversation) in whole
    return found


def first_turn(conversation: Conversation) -> str:
    """What the user says first, whatever its case and spaces; without a user the whole of it."""
    for message in conversation.messages:
        if message.role == "user":
            return "user " + " ".join(message.content.casefold().split())
    return "conversation " + _identity(conversation)


def trim(conversation: Conversation) -> Conversation:
    """The conversation up to the last turn of the assistant: what comes after teaches nothing."""
    spoken = [i for i, message in enumerate(conversation.messages) if message.role == "assistant"]
    end = spoken[-1] + 1 if spoken else 0
    return Conversation(conversation.messages[:end], conversation.tools)


def unfit(conversation: Conversation) -> str | None:
    """Why a trimmed conversation teaches nothing, or None where it does."""
    if not conversation.messages:
        return "no assistant turn"
    answers = (message for message in conversation.messages if message.role == "assistant")
    if any(not answer.content.strip() and not answer.tool_calls for answer in answers):
        return "empty answer"
    return None


def _identity(conversation: Conversation) -> str:
    """A hash that equal conversations share."""
    return sha256_json(conversation.to_json())


@dataclass(frozen=True, slots=True)
class _Kept:
    """A conversation that stays, trimmed, with its number among all that were read."""

    id: int
    example: Example
    turn: str


class _Taking:
    """One pass over all conversations: what is dropped is written, what stays is returned."""

    def __init__(self, dropped: IO[bytes]) -> None:
        self.dropped, self.ledger = dropped, Ledger()

    def keep(self, examples: Iterable[Example]) -> list[_Kept]:
        """The conversations that teach something, each once."""
        first: dict[str, int] = {}
        kept = []
        for example in examples:
            number = self._count(example)
            conversation = trim(example.conversation)
            if reason := unfit(conversation):
                self._drop(number, example, {"reason": reason})
                continue
            identity = _identity(conversation)
            if identity in first:
                entry = {"reason": "duplicate", "duplicate_of": first[identity]}
                self._drop(number, example, entry)
                continue
            first[identity] = number
            trailing = len(example.conversation.messages) - len(conversation.messages)
            self.ledger.trimmed += trailing > 0
            self.ledger.trailing_messages += trailing
            kept.append(
                _Kept(number, replace(example, conversation=conversation), first_turn(conversation))
            )
        return kept

    def _count(self, example: Example) -> int:
        """The number of a conversation among all; its file and format are noted."""
        file = self.ledger.files.setdefault(
            example.source, {"format": example.format, "conversations": 0}
        )
        file["conversations"] += 1
        self.ledger.read += 1
        return self.ledger.read - 1

    def _drop(self, number: int, example: Example, entry: dict[str, Any]) -> None:
        self.ledger.dropped[entry["reason"]] += 1
        place = {"id": number, "source": example.source, "line": example.line}
        self.dropped.write(_line(place | entry))


def _divided(kept: list[_Kept], split: Split, ledger: Ledger) -> tuple[list[_Kept], list[_Kept]]:
    """Training and held-out conversations: first turns in the order of a seeded hash."""
    turns = sorted(
        {one.turn for one in kept},
        key=lambda turn: hashlib.sha256(f"{split.seed} {turn}".encode()).digest(),
    )
    if split.fraction and len(turns) < 2:
        what = "too few different first turns to hold out a part (1)"
        raise DataError(what, place="holdout", fix="add conversations, or set holdout: 0")
    count = round(split.fraction * len(turns))
    if split.fraction:
        count = min(max(count, 1), len(turns) - 1)
    chosen = set(turns[:count])
    ledger.groups, ledger.heldout_groups = len(turns), count
    train = [one for one in kept if one.turn not in chosen]
    return train, [one for one in kept if one.turn in chosen]


def _given(train: list[_Kept], heldout: list[_Kept], ledger: Ledger, *, strict: bool) -> None:
    """Say how much of a held-out set that was given is in training too, or refuse it."""
    found = overlap(
        (one.example.conversation for one in train), (one.example.conversation for one in heldout)
    )
    ledger.overlap = found
    ledger.groups = len({one.turn for one in (*train, *heldout)})
    ledger.heldout_groups = len({one.turn for one in heldout})
    if any(found.values()):
        what = f"{found['first_turns']} of {len(heldout)} held-out conversations begin like one in "
        what += f"training, {found['conversations']} are in it whole"
        if strict:
            fix = "remove them from one side, or set strict: false"
            raise DataError(what, place="heldout", fix=fix)
        log.warning("%s: the scores on them flatter", what)


def _nothing_left(ledger: Ledger, purpose: str) -> DataError:
    reasons = ", ".join(f"{reason} {n}" for reason, n in ledger.dropped.most_common())
    what = f"no conversations left {purpose}: {ledger.read} read, {ledger.rejected} rejected"
    what += f", dropped: {reasons}" if reasons else ""
    return DataError(what, fix="name files in which an assistant answers")


def _write(path: Path, kept: Iterable[_Kept]) -> None:
    with atomic_file(path) as file:
        for one in kept:
            example = one.example
            place = {"source": example.source, "line": example.line, "format": example.format}
            file.write(_line({"id": one.id, **example.conversation.to_json(), **place}))


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"
