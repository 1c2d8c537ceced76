"""The histories of a training stage: JSON Lines with a header, one row a step or a sample."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stemma.core.files import write_text


class RowFile:
    """A JSONL file with a header, cut back to a step at resume and appended to from there."""

    def __init__(self, path: Path, kind: str, *, keep_to_step: int) -> None:
        header = json.dumps({"format_version": 1, "kind": kind})
        kept = [line for line in whole_lines(path)[1:] if step_of(line) <= keep_to_step]
        write_text(path, "".join(f"{line}\n" for line in [header, *kept]))
        self.path = path

    def add(self, **row: Any) -> None:
        """Append one row; it is on its way to disk when this returns."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every row so far, in order."""
        for line in whole_lines(self.path)[1:]:
            yield json.loads(line)

    def sync(self) -> None:
        """Make all rows so far durable."""
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())


class NoRows:
    """The histories of a process that does not lead: those of the leader are enough."""

    def add(self, **row: Any) -> None:
        return None

    def rows(self) -> Iterator[dict[str, Any]]:
        return iter(())

    def sync(self) -> None:
        return None


def whole_lines(path: Path) -> list[str]:
    """Complete lines of a file that may have been cut in the middle of one."""
    text = path.read_text("utf-8", errors="replace") if path.exists() else ""
    return text.split("\n")[:-1]


def step_of(line: str) -> float:
    """The step of a row; beyond all steps for a line that is no row, so that it is left out."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
