"""The real command line, called in this process, and what every bad input must keep.

A case is a line of a table: what is laid out in an empty folder, the command, the exit code, and
the one line that must come back. Whatever the case, nothing that was there before may be lost or
changed, and nothing half done may stand under a final name.
"""

import hashlib
import io
import json
import logging
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from stemma import cli
from stemma.core.errors import MAX_MESSAGE

# what a run that fails inside its first stage may leave: its papers, and no result
PAPERS = re.compile(
    r"runs(/tiny(/(recipe\.yaml|run\.json|corpus(/(stage\.json|dropped\.jsonl))?))?)?"
)


@dataclass(frozen=True)
class Outcome:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines that begin as an error does."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]

    @property
    def warnings(self) -> list[str]:
        """The warnings, which are JSON lines where nobody watches."""
        rows = [json.loads(line) for line in self.err.splitlines() if line.startswith("{")]
        return [row["message"] for row in rows if row.get("level") == "warning"]


@dataclass(frozen=True)
class Refused:
    """An input that must be refused: `line` is the pattern of all that follows `error: `."""

    number: int  # of the case in the table of bad inputs
    name: str
    lay_out: Callable[[Path], None]
    command: str
    code: int
    line: str


@dataclass(frozen=True)
class Accepted:
    """An input that must be taken, or skipped with a note: what is kept and what is listed."""

    number: int
    name: str
    lay_out: Callable[[Path], None]
    command: str
    kept: tuple[str, ...]  # texts beside those of `good_documents`
    rejects: tuple[tuple[str, int | None, str], ...] = ()  # source, line, pattern of the reason
    dropped: tuple[str, ...] = ()  # reasons
    warning: str = ""  # pattern


def names(case: Refused | Accepted) -> str:
    """The test's id: case number, then the variant."""
    return f"{case.number:02}-{case.name}"


@contextmanager
def restored(folder: Path, arguments: list[str], environment: Mapping[str, str]) -> Iterator[None]:
    """Put back afterwards all that a command may change in this process."""
    log = logging.getLogger("stemma")
    before = (os.getcwd(), sys.argv, dict(os.environ), signal.getsignal(signal.SIGTERM))
    logging_before = (log.handlers[:], log.propagate, log.level)
    os.chdir(folder)
    os.environ.update(environment)
    sys.argv = ["stemma", *arguments]
    try:
        yield
    finally:
        os.chdir(before[0])
        sys.argv = before[1]
        os.environ.clear()
        os.environ.update(before[2])
        signal.signal(signal.SIGTERM, before[3])
        log.handlers[:], log.propagate = logging_before[:2]
        log.setLevel(logging_before[2])


def call(folder: Path, command: str, environment: Mapping[str, str] | None = None) -> Outcome:
    """Run `stemma COMMAND` in `folder`, as the console script does."""
    out, err = io.StringIO(), io.StringIO()
    code: object = "main came back, which it must not"
    with restored(folder, shlex.split(command), environment or {}):
        with redirect_stdout(out), redirect_stderr(err):
            try:
                cli.main()
            except SystemExit as leaving:
                code = leaving.code
    assert isinstance(code, int), code
    return Outcome(code, out.getvalue(), err.getvalue())


def snapshot(folder: Path) -> dict[str, str]:
    """Every entry below a folder with what it holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "a folder"
    return found


def check_line(outcome: Outcome, code: int, pattern: str) -> None:
    """One error line with code, place, fault and way out; all other lines are log lines."""
    assert outcome.code == code, outcome.err
    assert len(outcome.errors) == 1, outcome.err
    line = outcome.errors[0]
    assert re.fullmatch("error: " + pattern, line), line
    assert len(line) <= MAX_MESSAGE, len(line)
    assert line.rpartition("; ")[2].strip(), line
    for other in outcome.err.splitlines():
        assert other == line or "message" in json.loads(other) or "stage" in json.loads(other)


def check_kept(before: Mapping[str, str], folder: Path) -> None:
    """Nothing lost, nothing changed, nothing half done under a final name."""
    after = snapshot(folder)
    assert {name: after.get(name) for name in before} == dict(before)
    for name in sorted(after.keys() - before.keys()):
        assert PAPERS.fullmatch(name), f"{name} is new"
        if name.endswith(".json"):
            assert json.loads((folder / name).read_text()).get("status") != "complete"


def refuse(case: Refused, folder: Path) -> None:
    """Check a refused input; a wrong command, recipe or model leaves nothing new at all."""
    case.lay_out(folder)
    before = snapshot(folder)
    outcome = call(folder, case.command)
    check_line(outcome, case.code, case.line)
    check_kept(before, folder)
    if case.code in (2, 4):
        assert snapshot(folder) == before


def accept(case: Accepted, folder: Path, good: Iterable[str]) -> None:
    """Check an input that is taken: every document is either kept, dropped or listed."""
    case.lay_out(folder)
    before = snapshot(folder)
    outcome = call(folder, case.command)
    assert outcome.code == 0, outcome.err
    assert not outcome.errors
    after = snapshot(folder)
    assert {name: after.get(name) for name in before} == before
    corpus = folder / "runs" / "tiny" / "corpus"
    kept = [entry["text"] for entry in rows(corpus / "train.jsonl")]
    assert sorted(kept) == sorted([*case.kept, *good])
    assert sorted(entry["reason"] for entry in rows(corpus / "dropped.jsonl")) == sorted(
        case.dropped
    )
    check_rejects(rows(corpus / "rejects.jsonl"), case)
    ledger = json.loads((corpus / "ledger.json").read_text())
    assert ledger["read"]["documents"] == len(kept) + len(case.dropped)
    assert ledger["train"]["documents"] == len(kept)
    assert ledger["rejected"] == len(case.rejects)
    if case.rejects:
        noted = [text for text in outcome.warnings if re.search(r"\brejects\.jsonl\b", text)]
        assert len(noted) == 1 and re.search(rf"\b{len(case.rejects)}\b", noted[0]), outcome.err
    if case.warning:
        assert any(re.search(case.warning, text) for text in outcome.warnings), outcome.err


def check_rejects(found: list[dict[str, object]], case: Accepted) -> None:
    """The reject file names file, line and reason of each bad line and of nothing else."""
    assert [(row["source"], row.get("line")) for row in found] == [
        (source, line) for source, line, _ in case.rejects
    ]
    for row, (_, _, pattern) in zip(found, case.rejects, strict=True):
        assert re.search(pattern, str(row["reason"])), row


def rows(path: Path) -> list[dict[str, object]]:
    """The objects of a JSON Lines file."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]
