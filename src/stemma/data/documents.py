"""Documents out of files of text, JSON Lines and Parquet, one at a time and in a fixed order.

Every document knows its source and line, every fault its exact place. One option, `bad_lines`,
decides what a fault means: "error" stops at the first one; "skip" hands it to the caller as a
reject and goes on, so that the documents kept are exactly the good ones. Where the rest of a
file is lost (an archive that ends early), "skip" keeps what came before.

Policies: the text is kept as it is, to the last character, NUL included; only a UTF-8 byte order
mark at the start of a file is dropped. Blank lines between JSON lines are no documents. An
empty text is a document here; `stemma.data.curate` drops it and counts it.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal

from pydantic import Field

from stemma.core.config import StrictModel
from stemma.core.errors import DataError, UsageError, printable
from stemma.core.files import atomic_file
from stemma.data.flaws import Flaw
from stemma.data.jsonl import LineParser, split_lines, too_long
from stemma.data.parquet import read_rows
from stemma.data.sources import ENDINGS, Format, format_of, source_name
from stemma.data.streams import as_utf8, read_blocks, size_on_disk

log = logging.getLogger("stemma")

LINE_SLACK = 1 << 20  # bytes that a JSON line may have beyond its text, for keys and escapes


@dataclass(frozen=True, slots=True)
class Document:
    """One text and where it came from; `line` is None where the document is a whole file."""

    text: str
    source: str
    line: int | None


# settings that the recipe's stage has too: one description and one limit for both
TextKey = Annotated[
    str,
    Field(min_length=1, description="the key (JSON Lines) or column (Parquet) that holds the text"),
]
BadLines = Annotated[
    Literal["error", "skip"],
    Field(description="stop at the first unreadable document, or list it in rejects.jsonl"),
]
MaxDocumentBytes = Annotated[
    int, Field(gt=0, description="the largest document in bytes of UTF-8; a larger one is bad")
]
MaxExpansion = Annotated[
    int, Field(gt=1, description="how many times its size a compressed file may unpack to")
]


class ReadOptions(StrictModel):
    """How documents are read, and what an unreadable one means."""

    text_key: TextKey = "text"
    bad_lines: BadLines = "error"
    max_document_bytes: MaxDocumentBytes = 64 << 20
    max_expansion: MaxExpansion = 1000


@dataclass(frozen=True, slots=True)
class Reject:
    """A line, row or rest of a file that was left out, and why.

    `line` is None for a whole file, `column` counts characters from 1, `byte` bytes from 0; `key`
    is where in the line, such as "messages[2].role".
    """

    source: str
    line: int | None
    reason: str
    column: int | None = None
    byte: int | None = None
    key: str | None = None


class RejectFile:
    """Writes rejects as JSON Lines, whole or not at all: call it once for each reject.

    >>> with RejectFile(Path("rejects.jsonl")) as rejects:       # doctest: +SKIP
    ...     documents = list(read_documents(files, options, rejects, root))
    """

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0
        self._stack = ExitStack()

    def __enter__(self) -> "RejectFile":
        self._file = self._stack.enter_context(atomic_file(self.path, "w"))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def __call__(self, reject: Reject) -> None:
        fields = {key: value for key, value in asdict(reject).items() if value is not None}
        self._file.write(json.dumps(fields, ensure_ascii=False) + "\n")
        self.count += 1


def read_documents(
    files: Sequence[Path],
    options: ReadOptions,
    on_reject: Callable[[Reject], None],
    root: Path,
) -> Iterator[Document]:
    """The documents of `files`, in their order; sources are named relative to `root`.

    Raises DataError at the first fault under `bad_lines: error`, and in any case if no document
    was read at all; UsageError for a file that is not regular or of unknown format;
    ResourceError where the machine refuses. Memory holds one document at a time.
    """
    reading = _Reading(options, on_reject)
    for path in files:
        yield from reading.documents(path, source_name(path, root))
    if reading.total == 0:
        raise reading.faults.nothing("documents", [source_name(path, root) for path in files])


class Faults:
    """What a fault means by the option `bad_lines`: an error, or a reject that is counted."""

    def __init__(self, bad_lines: BadLines, on_reject: Callable[[Reject], None]) -> None:
        self.bad_lines, self.on_reject = bad_lines, on_reject
        self.count, self.first = 0, ""  # rejects, and the message of the first

    def take(self, flaw: Flaw, source: str, reason: str) -> None:
        """Raise DataError at the place of a flaw, or hand it on as a reject and come back."""
        place = flaw.place(source)
        if self.bad_lines == "error":
            raise DataError(reason, place=place, fix=_way_out(flaw)) from flaw
        self.count += 1
        self.first = self.first or f"{place}: {reason}"
        key = printable(flaw.key) if flaw.key else None
        self.on_reject(Reject(source, flaw.line, printable(reason), flaw.column, flaw.byte, key))

    def nothing(self, what: str, sources: Sequence[str]) -> DataError:
        """The error for files in which nothing could be read; `what` was looked for."""
        names = ", ".join(sources[:3]) or "an empty list"
        said = f"no {what} in {names}{', …' if len(sources) > 3 else ''}"
        if self.count:
            said += f" ({self.count} rejects, first: {self.first})"
        return DataError(said, fix="look at the files, or name others")


class _Reading:
    """The state of one pass over many files: the policy, the counts, and the last good schema."""

    def __init__(self, options: ReadOptions, on_reject: Callable[[Reject], None]) -> None:
        self.options, self.faults = options, Faults(options.bad_lines, on_reject)
        self.total, self.has_key = 0, ""  # documents; the first file with the text key
        self.parser = LineParser(options.text_key, options.max_document_bytes)
        self.warned = False

    def documents(self, path: Path, source: str) -> Iterator[Document]:
        """The good documents of one file; its faults go to the policy."""
        form = format_of(path)
        if form is None:
            raise UsageError(f"unknown ending {path.suffix!r}", place=source, fix=ENDINGS)
        good = bad = 0
        try:
            for line, found in self._entries(path, form, source):
                if isinstance(found, Flaw):
                    self._fault(found, source, good, bad)
                    bad += 1
                    continue
                if line is not None and not self.has_key:
                    self.has_key = source
                good += 1
                self.total += 1
                yield Document(found, source, line)
        except Flaw as flaw:
            self._fault(flaw, source, good, bad)

    def _entries(
        self, path: Path, form: Format, source: str
    ) -> Iterator[tuple[int | None, str | Flaw]]:
        options = self.options
        limit, expansion = options.max_document_bytes, options.max_expansion
        if form.kind == "parquet":
            yield from read_rows(
                path, options.text_key, limit=limit, max_expansion=expansion, name=source
            )
            return
        blocks = read_blocks(path, form.compression, max_expansion=expansion, name=source)
        if form.kind == "text":
            yield None, whole_text(as_utf8(blocks), limit, size_on_disk(path))
            return
        unsure = form.kind == "json"
        for number, line in split_lines(as_utf8(blocks), limit + LINE_SLACK):
            if line is not None and not line.strip():
                continue
            if unsure:
                require_lines(line, self.parser)
                unsure = False
            yield number, self._line(number, line, source)

    def _line(self, number: int, line: bytes | None, source: str) -> str | Flaw:
        if line is None:
            return too_long(self.options.max_document_bytes, line=number)
        try:
            text = self.parser.text(line)
        except Flaw as flaw:
            flaw.line = number
            return flaw
        if self.parser.repeated and not self.warned:
            key = printable(self.parser.repeated)
            log.warning("%s:%d: the key %s comes twice; its last value counts", source, number, key)
            self.warned = True
        return text

    def _fault(self, flaw: Flaw, source: str, good: int, bad: int) -> None:
        """One fault, with what the other lines and files tell about it."""
        reason = flaw.reason
        if flaw.missing_key and good + bad == 0 and self.has_key:
            reason = f"{reason}, unlike {self.has_key}"
        if flaw.ends_file and good:
            reason = f"{reason} after {good} documents"
        self.faults.take(flaw, source, reason)


def _way_out(flaw: Flaw) -> str:
    rest = "to keep only what is readable" if flaw.ends_file else "to leave it out"
    return f"{flaw.fix or 'repair it'}, or set bad_lines: skip {rest}"


def whole_text(blocks: Iterator[bytes], limit: int, size: int) -> str:
    """A whole file as one text. Raises Flaw above `limit` bytes and at the first invalid byte."""
    data = bytearray()
    for block in blocks:
        data += block
        if len(data) > limit:
            raise too_long(limit, size=size if size > limit else 0)  # packed: size not known
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        start = data.rfind(b"\n", 0, error.start) + 1
        line = data.count(b"\n", 0, error.start) + 1
        what = f"invalid UTF-8 (byte 0x{data[error.start]:02x})"
        fix = "convert it with iconv"
        raise Flaw(what, line=line, byte=error.start - start, fix=fix) from error


def require_lines(line: bytes | None, parser: LineParser) -> None:
    """Refuse a .json file that is not JSON Lines: its first line must be a whole object."""
    try:
        value: Any = parser.parse(line) if line is not None else None
    except Flaw:
        value = None
    if isinstance(value, dict):
        return
    first = (line or b"").lstrip()[:1]
    kinds = {b"[": "a JSON array", b"{": "one JSON object over several lines"}
    what = kinds.get(first, "another JSON value or no JSON at all")
    example = "jq -c .[] FILE > FILE.jsonl" if first == b"[" else "jq -c . FILE > FILE.jsonl"
    raise Flaw(f"is {what}, not one object a line", fix=f"convert it: {example}", ends_file=True)
