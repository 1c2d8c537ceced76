"""The least that must happen to documents before training: drop, split, and account for all.

Empty documents and exact copies are dropped with their reason, whole works are held out for
evaluation (`stemma.data.heldout`), and a ledger counts every document and byte: what was read
is what is in training, held out or dropped, to the last byte. The kept documents are spooled
to disk once, because the choice of works needs all sizes; memory holds hashes and numbers only.
"""

import hashlib
import json
import logging
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Any

from pydantic import Field

from stemma.core.config import StrictModel
from stemma.core.errors import DataError
from stemma.core.files import atomic_file, require_writable, resource_error
from stemma.data.documents import Document, RejectFile
from stemma.data.heldout import Choice, Groups, Holdout, cut_text

log = logging.getLogger("stemma")


# settings that the recipe's stage has too: one description and one limit for both
HoldoutSetting = Annotated[Holdout, Field(description="what is kept from training to evaluate on")]
DropDuplicates = Annotated[
    bool, Field(description="keep only the first of documents with exactly the same text")
]


class CurateOptions(StrictModel):
    """What is dropped and what is held out."""

    holdout: HoldoutSetting = Holdout()
    drop_duplicates: DropDuplicates = True


@dataclass
class Count:
    """Documents and their bytes of UTF-8."""

    documents: int = 0
    bytes: int = 0

    def add(self, size: int, documents: int = 1) -> None:
        """Count one more document of `size` bytes, or with documents=0 only bytes."""
        self.documents += documents
        self.bytes += size


@dataclass
class Ledger:
    """Where every document and byte went.

    A document that is cut counts in `train`; its held-out end counts in `cut`, and its bytes in
    the bytes of `heldout`. `rejected` lines never became documents and stand outside.
    """

    read: Count = field(default_factory=Count)
    train: Count = field(default_factory=Count)
    heldout: Count = field(default_factory=Count)
    cut: Count = field(default_factory=Count)
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_bytes: int = 0
    rejected: int = 0
    groups: int = 0
    heldout_groups: int = 0

    def drop(self, reason: str, size: int) -> None:
        """Count a document that is left out."""
        self.dropped[reason] += 1
        self.dropped_bytes += size

    def balanced(self) -> bool:
        """Whether what was read equals training + held out + dropped, in documents and bytes."""
        documents = self.train.documents + self.heldout.documents + self.dropped.total()
        size = self.train.bytes + self.heldout.bytes + self.dropped_bytes
        return (self.read.documents, self.read.bytes) == (documents, size)

    def to_json(self) -> dict[str, Any]:
        """The ledger as a JSON object."""
        counts = {name: vars(getattr(self, name)) for name in ("read", "train", "heldout", "cut")}
        return {
            **{name: dict(count) for name, count in counts.items()},
            "dropped": dict(sorted(self.dropped.items())),
            "dropped_bytes": self.dropped_bytes,
            "rejected": self.rejected,
            "groups": self.groups,
            "heldout_groups": self.heldout_groups,
            "split": self.cut.documents > 0,
            "balanced": self.balanced(),
        }


def curate(
    documents: Iterable[Document],
    options: CurateOptions,
    train_path: Path,
    heldout_path: Path,
    dropped_path: Path,
    rejects: RejectFile | None = None,
) -> Ledger:
    """Write training and held-out documents and what was dropped, and return the ledger.

    Each line of the first two files is {"id", "text", "source", "line", "bytes"}, in reading
    order, with ids that run over all documents read; a cut document has one line in each file
    with the same id and "split": true. Each line of `dropped_path` is {"id", "source", "line",
    "reason", "bytes"}, with "duplicate_of" (an id) for copies. With a fraction of 0 no held-out
    file is written. `rejects`, where given, is the file that the reader writes: its count goes
    into the ledger.

    Raises DataError where nothing is left or nothing can be held out, ResourceError where the
    machine refuses; no file is then changed, or only the list of dropped documents.
    """
    require_writable(train_path.parent)
    curation = _Curation(options)
    try:
        with tempfile.TemporaryFile(dir=train_path.parent) as spool:
            with atomic_file(dropped_path) as dropped:
                for document in documents:
                    curation.take(document, spool, dropped)
            ledger = curation.ledger
            ledger.rejected = rejects.count if rejects else 0
            if ledger.read.documents == ledger.dropped.total():
                raise _nothing_left(ledger)
            spool.seek(0)
            curation.write(spool, train_path, heldout_path)
    except OSError as error:
        written = curation.ledger.read.bytes
        raise resource_error(error, train_path.parent, written=written) from error
    assert ledger.balanced(), f"the ledger does not balance: {ledger}"
    return ledger


def _nothing_left(ledger: Ledger) -> DataError:
    reasons = ", ".join(f"{reason} {n}" for reason, n in ledger.dropped.most_common())
    what = f"no documents left: {ledger.read.documents} read, {ledger.rejected} rejected"
    what += f", dropped: {reasons}" if reasons else ""
    return DataError(what, fix="name files with text in them")


class _Curation:
    """One pass in, one pass out; between them only hashes, groups and sizes."""

    def __init__(self, options: CurateOptions) -> None:
        self.options, self.ledger = options, Ledger()
        self.groups = Groups(options.holdout)
        self.first: dict[bytes, tuple[int, int]] = {}  # hash of a text -> id and group
        self.group_of, self.size_of = array("q"), array("q")  # of every kept document

    def take(self, document: Document, spool: IO[bytes], dropped: IO[bytes]) -> None:
        """Drop a document, or spool it and note its group."""
        raw = document.text.encode()
        number = self.ledger.read.documents
        self.ledger.read.add(len(raw))
        entry: dict[str, Any] = {"id": number, "source": document.source, "line": document.line}
        if not document.text.strip():
            self._drop(entry, "empty", len(raw), dropped)
            return
        digest = hashlib.sha256(raw).digest()
        earlier = self.first.get(digest)
        if earlier is not None and self.options.drop_duplicates:
            self._drop(entry | {"duplicate_of": earlier[0]}, "duplicate", len(raw), dropped)
            return
        group = self.groups.add(document, len(raw))
        if earlier is not None:
            self.groups.join(earlier[1], group)
        self.first.setdefault(digest, (number, group))
        self.group_of.append(group)
        self.size_of.append(len(raw))
        spool.write(_line(entry | {"text": document.text, "bytes": len(raw)}))

    def _drop(self, entry: dict[str, Any], reason: str, size: int, dropped: IO[bytes]) -> None:
        self.ledger.drop(reason, size)
        dropped.write(_line(entry | {"reason": reason, "bytes": size}))

    def write(self, spool: IO[bytes], train_path: Path, heldout_path: Path) -> None:
        """Send every spooled document to its side."""
        choice = self.groups.choose()
        self.ledger.groups, self.ledger.heldout_groups = choice.groups, len(choice.whole)
        with ExitStack() as stack:
            train = stack.enter_context(atomic_file(train_path))
            heldout = train
            if self.options.holdout.fraction:
                heldout = stack.enter_context(atomic_file(heldout_path))
            for line, group, size in zip(spool, self.group_of, self.size_of, strict=True):
                root = self.groups.root(group)
                if root == choice.cut and self._cut(line, choice, train, heldout):
                    continue
                side = root in choice.whole
                (heldout if side else train).write(line)
                (self.ledger.heldout if side else self.ledger.train).add(size)
            self._check_share()

    def _cut(self, line: bytes, choice: Choice, train: IO[bytes], heldout: IO[bytes]) -> bool:
        """Hold out the end of one document; False where it is too short for that."""
        entry = json.loads(line)
        parts = cut_text(entry["text"], choice.share)
        if parts is None:
            return False
        sizes = [len(part.encode()) for part in parts]
        for file, text, size in zip((train, heldout), parts, sizes, strict=True):
            file.write(_line(entry | {"text": text, "bytes": size, "split": True}))
        self.ledger.train.add(sizes[0])
        self.ledger.heldout.add(sizes[1], documents=0)
        self.ledger.cut.add(sizes[1])
        return True

    def _check_share(self) -> None:
        """Refuse an empty held-out set, and say aloud what the documents did not allow."""
        holdout, ledger = self.options.holdout, self.ledger
        total = ledger.train.bytes + ledger.heldout.bytes
        if holdout.fraction and not ledger.heldout.bytes:
            what = f"too little text to hold out a part ({total} bytes)"
            raise DataError(what, fix="add documents, or set holdout.fraction: 0")
        if holdout.group and not self.groups.matched:
            log.warning("holdout.group %r matches no source: each document is alone", holdout.group)
        if ledger.heldout.bytes > 2 * holdout.fraction * total:
            log.warning(
                "held out %d of %d bytes, more than the wanted share of %g: whole works are held "
                "out, and these are too large to come nearer",
                ledger.heldout.bytes,
                total,
                holdout.fraction,
            )


def _line(entry: dict[str, Any]) -> bytes:
    """One JSON line, id and text first."""
    ordered = {key: entry[key] for key in ("id", "text") if key in entry} | entry
    return json.dumps(ordered, ensure_ascii=False).encode() + b"\n"


def read_jsonl_documents(
    path: Path, *, fix: str = "run the corpus stage again"
) -> Iterator[dict[str, Any]]:
    """The lines that `curate` wrote, as dictionaries.

    Raises DataError, with this way out, for a file that is missing or was damaged since.
    """
    number = 0
    try:
        with open(path, "rb") as file:
            for line in file:
                number += 1
                yield json.loads(line)
    except FileNotFoundError as error:
        raise DataError("does not exist", place=path, fix=fix) from error
    except ValueError as error:
        what = f"is damaged ({error})"
        raise DataError(what, place=f"{path}:{number}", fix=fix) from error
    except OSError as error:
        raise resource_error(error, path) from error


def read_texts(path: Path) -> Iterator[str]:
    """The texts of one side of a split; none where that side was left out."""
    if path.exists():
        for entry in read_jsonl_documents(path):
            yield entry["text"]


def read_sizes(path: Path) -> Iterator[int]:
    """The bytes of UTF-8 of each document of one side; none where that side was left out."""
    if path.exists():
        for entry in read_jsonl_documents(path):
            yield entry["bytes"]


def read_sources(path: Path) -> Iterator[str]:
    """Where the documents of one side came from; none where that side was left out."""
    if path.exists():
        for entry in read_jsonl_documents(path):
            yield entry["source"]
