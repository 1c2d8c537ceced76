"""Labelled texts out of people's files, checked, and split for training and for scoring.

An example is a line {"text": "…", "label": "…"}, with "second" for the second text of a pair; JSON
arrays, Parquet and YAML are read too. Or texts come as whole files whose label stands in their
name: then regular expressions tell it, and a file is cut into passages. Every example knows its
file and line; a fault is an error or a reject by the option `bad_lines`, as for documents.

What is held out is chosen by text, and of passages by file: nothing of a held-out text was ever
trained on. A part of every label is taken, as near to the wanted share as whole texts allow. A
ledger counts every example: read = in training + held out + dropped.
"""

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from stemma.core.config import StrictModel
from stemma.core.errors import DataError, nearest, printable
from stemma.core.files import atomic_file, require_writable, sha256_json
from stemma.data.conversation_files import KINDS as EXAMPLE_KINDS
from stemma.data.conversation_files import read_entries
from stemma.data.curate import read_jsonl_documents
from stemma.data.documents import (
    BadLines,
    Faults,
    MaxDocumentBytes,
    MaxExpansion,
    ReadOptions,
    Reject,
    RejectFile,
    read_documents,
)
from stemma.data.flaws import Flaw
from stemma.data.jsonl import check_text, kind_of
from stemma.data.sources import KINDS as TEXT_KINDS
from stemma.data.sources import Kind, source_name

log = logging.getLogger("stemma")

KINDS: Mapping[str, Kind] = {**EXAMPLE_KINDS, **TEXT_KINDS}
COLUMNS = frozenset({"text", "second", "label"})
SHOWN = 8  # keys or labels that a message names


@dataclass(frozen=True, slots=True)
class Example:
    """One text, or pair of texts, with its label, and where it came from.

    `group` is what it must be held out together with.
    """

    text: str
    label: str
    source: str
    line: int
    group: str
    second: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The example as the JSON object of a line."""
        pair = {} if self.second is None else {"second": self.second}
        place = {"source": self.source, "line": self.line, "group": self.group}
        return {"text": self.text, **pair, "label": self.label, **place}


class ExampleOptions(StrictModel):
    """How labelled texts are read, and what an unreadable one means."""

    bad_lines: BadLines = "error"
    max_document_bytes: MaxDocumentBytes = 64 << 20
    max_expansion: MaxExpansion = 1000


class Passages(StrictModel):
    """Labels that stand in the names of files of text; without any, the files hold examples."""

    labels: dict[str, str] = Field(
        default={},
        description="a regular expression on the file's name for each label; the first fits",
    )
    apart: Literal["files", "passages"] = Field(
        default="files", description="what is held out whole: files, so that no name gives it away"
    )
    characters: int = Field(
        default=400, ge=20, description="length of a passage, which ends with a paragraph"
    )

    @field_validator("labels")
    @classmethod
    def _compiles(cls, labels: dict[str, str]) -> dict[str, str]:
        if len(labels) == 1:
            raise ValueError(f"only one label ({next(iter(labels))}), and at least two are needed")
        for label, wanted in labels.items():
            try:
                re.compile(wanted)
            except re.error as error:
                raise ValueError(
                    f"{label}: {wanted!r} is no regular expression: {error}"
                ) from error
        return labels


Reading = Callable[[Sequence[Path], Path], Iterator[Example]]


def read_examples(
    files: Sequence[Path],
    options: ExampleOptions,
    on_reject: Callable[[Reject], None],
    root: Path,
) -> Iterator[Example]:
    """The labelled texts of `files`, in their order; sources are named relative to `root`.

    Raises DataError at the first fault under `bad_lines: error`, and in any case if nothing was
    read at all; UsageError for a file that is not regular or of unknown ending; ResourceError
    where the machine refuses.
    """
    faults, total = Faults(options.bad_lines, on_reject), 0
    for path in files:
        source, limit = source_name(path, root), options.max_document_bytes
        entries = read_entries(
            path, source, columns=COLUMNS, limit=limit, max_expansion=options.max_expansion
        )
        try:
            for line, value in entries:
                try:
                    example = _example(value, source, line, limit)
                except Flaw as flaw:
                    flaw.line = line if flaw.line is None else flaw.line
                    faults.take(flaw, source, flaw.reason)
                    continue
                total += 1
                yield example
        except Flaw as flaw:
            faults.take(flaw, source, flaw.reason)
    if total == 0:
        raise faults.nothing("labelled texts", [source_name(path, root) for path in files])


def _example(value: Any, source: str, line: int, limit: int) -> Example:
    """The example of a line. Raises Flaw."""
    if isinstance(value, Flaw):
        raise value
    if not isinstance(value, dict):
        raise Flaw(f"expected an object with text and label, got {kind_of(value)}")
    for key in ("text", "label"):
        if key not in value:
            keys = ", ".join(printable(key) for key in list(value)[:SHOWN]) or "none"
            what, fix = f"no key {key!r} (keys: {keys})", 'write {"text": "…", "label": "…"}'
            raise Flaw(what, fix=fix, missing_key=True)
    text, label = (_said(value[key], key, limit) for key in ("text", "label"))
    second = None if value.get("second") is None else _said(value["second"], "second", limit)
    group = sha256_json([text, second])
    return Example(text, label.strip(), source, line, group, second)


def _said(value: Any, key: str, limit: int) -> str:
    """A text that says something. Raises Flaw."""
    text = check_text(value, key, limit)
    if not text.strip():
        raise Flaw(f"{'a label' if key == 'label' else 'a text'} that is empty", key=key)
    return text


def read_passages(
    files: Sequence[Path],
    passages: Passages,
    options: ExampleOptions,
    on_reject: Callable[[Reject], None],
    root: Path,
) -> Iterator[Example]:
    """Passages of files of text, each with the label that its file's name tells.

    Raises what `read_documents` raises, DataError where no file's name fits a label, or where a
    label fits no file.
    """
    chosen = ReadOptions(**options.model_dump())
    files_of: Counter[str] = Counter()
    passed: list[str] = []
    for document in read_documents(files, chosen, on_reject, root):
        label = label_of(document.source, passages.labels)
        if label is None:
            passed.append(document.source)
            continue
        files_of[label] += 1
        for line, text in cut(document.text, passages.characters):
            group = document.source if passages.apart == "files" else sha256_json([text, None])
            yield Example(text, label, document.source, line, group)
    unknown = [label for label in passages.labels if not files_of[label]]
    if unknown:
        named = ", ".join(passed[:3]) or "all others"
        what = f"no file's name fits the label {unknown[0]!r} (files without one: {named})"
        raise DataError(what, place="passages.labels", fix="correct its regular expression")
    if passed:
        log.warning("%d files fit no label and are left out; first: %s", len(passed), passed[0])


def label_of(source: str, labels: Mapping[str, str]) -> str | None:
    """The first label whose regular expression is found in a file's name."""
    return next((name for name, wanted in labels.items() if re.search(wanted, source)), None)


def cut(text: str, characters: int) -> Iterator[tuple[int, str]]:
    """Passages of about so many characters, each of whole paragraphs, with their first lines.

    A paragraph ends with an empty line. Shorter ends are left out: they would tell little.

    >>> [*cut("one two\\n\\nthree\\n\\nfour\\n", 8)]
    [(1, 'one two\\n\\nthree')]
    """
    held, began, line = "", 1, 1
    for paragraph in re.split(r"\n[ \t\r]*\n", text):
        words = paragraph.strip("\r\n")
        if words.strip():
            began = began if held else line + len(paragraph) - len(paragraph.lstrip("\n"))
            held = f"{held}\n\n{words}" if held else words
        line += paragraph.count("\n") + 2
        if len(held) >= characters:
            yield began, held
            held = ""


class Split(StrictModel):
    """How much is kept from training, which part, and how many examples are trained on."""

    fraction: float = Field(
        default=0.1, ge=0, lt=1, description="share of the texts held out; 0: nothing"
    )
    seed: int = Field(default=0, description="seed of the order in which texts are taken")
    examples: int | None = Field(default=None, ge=1, description="examples to train on, at most")


@dataclass
class Ledger:
    """Where every example went. `disagreeing` texts have several labels in the files.

    `labels` has, in the order of the labels' numbers, the examples for training and held out.
    """

    read: int = 0
    train: int = 0
    heldout: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    rejected: int = 0
    disagreeing: int = 0
    labels: dict[str, dict[str, int]] = field(default_factory=dict)

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
    rejects: RejectFile | None = None,
) -> Ledger:
    """Write `train.jsonl` and `heldout.jsonl` into `folder`; return the ledger.

    `heldout`, where given, is what is held out, instead of a share of the examples. Labels are
    numbered in the order of the alphabet. Without anything held out the file is not written.

    Raises DataError where there are fewer than two labels, too few examples to hold any out, or a
    held-out label that training does not have; no file is then changed.
    """
    require_writable(folder)
    ledger = Ledger()
    train = _distinct(examples, ledger)
    given = None if heldout is None else _distinct(heldout, ledger)
    ledger.rejected = rejects.count if rejects else 0
    if given is None:
        train, given = divided(train, split)
    else:
        given = _unseen(train, given, ledger)
    train = _fewer(train, split, ledger)
    names = sorted({example.label for example in train})
    _require_labels(names, train, given)
    ledger.train, ledger.heldout = len(train), len(given)
    counts = [Counter(example.label for example in side) for side in (train, given)]
    ledger.labels = {name: {"train": counts[0][name], "heldout": counts[1][name]} for name in names}
    assert ledger.balanced(), f"the ledger does not balance: {ledger}"
    _write(folder / "train.jsonl", train)
    if given:
        _write(folder / "heldout.jsonl", given)
    else:
        (folder / "heldout.jsonl").unlink(missing_ok=True)  # of an earlier split
    return ledger


def _distinct(examples: Iterable[Example], ledger: Ledger) -> list[Example]:
    """Each example once; texts that have several labels are counted, and stay."""
    seen: dict[str, set[str]] = {}
    kept = []
    for example in examples:
        ledger.read += 1
        labels = seen.setdefault(sha256_json([example.text, example.second]), set())
        if example.label in labels:
            ledger.dropped["duplicate"] += 1
            continue
        ledger.disagreeing += len(labels) == 1
        labels.add(example.label)
        kept.append(example)
    if ledger.disagreeing:
        log.warning("%d texts have several labels: no model can be right", ledger.disagreeing)
    return kept


def order_of(split: Split, name: str) -> bytes:
    """What names are sorted by: a hash, so that more examples do not change the order of others."""
    return hashlib.sha256(f"{split.seed} {name}".encode()).digest()


def divided(examples: list[Example], split: Split) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples: of every label's groups a share, in the order of a hash.

    Of two groups or more at least one is held out, and one is not. Raises DataError where no label
    has two.
    """
    if not split.fraction:
        return examples, []
    by_label: dict[str, dict[str, None]] = {}
    owner: dict[str, str] = {}  # a group with several labels counts for the first
    for example in examples:
        label = owner.setdefault(example.group, example.label)
        by_label.setdefault(label, {})[example.group] = None
    chosen: set[str] = set()
    for groups in by_label.values():
        count = min(max(round(split.fraction * len(groups)), 1), len(groups) - 1)
        chosen |= set(sorted(groups, key=lambda name: order_of(split, name))[:count])
    if not chosen:
        what = f"too few texts to hold out a part ({len(owner)}, no two with one label)"
        raise DataError(what, place="holdout", fix="add examples, or set holdout: 0")
    return (
        [example for example in examples if example.group not in chosen],
        [example for example in examples if example.group in chosen],
    )


def _unseen(train: list[Example], given: list[Example], ledger: Ledger) -> list[Example]:
    """Held-out examples whose texts are not in training; the others would flatter the score."""
    known = {sha256_json([example.text, example.second]) for example in train}
    kept = [e for e in given if sha256_json([e.text, e.second]) not in known]
    if len(kept) < len(given):
        ledger.dropped["held out, but in training"] += len(given) - len(kept)
        log.warning("%d held-out texts are in training too: left out", len(given) - len(kept))
    return kept


def _fewer(train: list[Example], split: Split, ledger: Ledger) -> list[Example]:
    """At most `split.examples`, taken from the labels in turn, in the order of a hash."""
    if split.examples is None or split.examples >= len(train):
        return train
    ranks: dict[int, tuple[int, bytes]] = {}
    numbered: Counter[str] = Counter()
    keys = [order_of(split, f"{example.text} {example.second}") for example in train]
    for place in sorted(range(len(train)), key=lambda place: keys[place]):
        ranks[place] = (numbered[train[place].label], keys[place])
        numbered[train[place].label] += 1
    taken = sorted(sorted(ranks, key=lambda place: ranks[place])[: split.examples])
    ledger.dropped["beyond the wanted examples"] += len(train) - len(taken)
    return [train[place] for place in taken]


def _require_labels(names: list[str], train: list[Example], given: list[Example]) -> None:
    if len(names) < 2:
        found = f"only the label {names[0]!r:.60}" if names else "no labelled text"
        fix = "classification needs at least two labels"
        raise DataError(f"{len(train)} texts for training have {found}", place="inputs", fix=fix)
    for example in given:
        if example.label not in names:
            what = f"the label {example.label!r:.60} is held out, and no training text has it"
            place = f"{example.source}:{example.line}"
            raise DataError(what, place=place, fix=nearest(example.label, names[:SHOWN]))


def _write(path: Path, examples: Iterable[Example]) -> None:
    with atomic_file(path) as file:
        for example in examples:
            file.write(json.dumps(example.to_json(), ensure_ascii=False).encode() + b"\n")


def read_prepared(path: Path) -> Iterator[Example]:
    """The examples that `prepare` wrote; none where that side was left out."""
    if path.exists():
        for entry in read_jsonl_documents(path, fix="run the stage again"):
            yield Example(**entry)
