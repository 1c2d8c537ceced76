"""What a report is made from: the files of a run folder, read and checked.

Only files of the folder are read. A stage that has not run, a log that a kill cut in the middle
of a line, a summary that is not there yet: all of these are normal. A file that is damaged is an
error that names it.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

from stemma.core.errors import DataError, UsageError
from stemma.core.files import resource_error

FORMAT_VERSION = 1
REPEAT = "run the recipe again"
# kinds of stages that make a model
TRAINING_KINDS = ("pretrain", "sft", "translate", "masked", "classify")

Row = dict[str, Any]
Role: TypeAlias = Literal["model", "before", "baseline"]
"""Whose score it is: a model of the run, one from before the run, or a method to compare with."""


@dataclass(frozen=True)
class StageRecord:
    """One stage's `stage.json`."""

    folder: Path
    record: Row

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def kind(self) -> str:
        return str(self.record.get("kind", ""))

    @property
    def status(self) -> str:
        return str(self.record.get("status", ""))

    @property
    def seconds(self) -> float:
        return number(self.record.get("seconds"))

    @property
    def peak_memory(self) -> float:
        return number(self.record.get("peak_memory_bytes"))

    @property
    def summary(self) -> Row:
        return mapping(self.record.get("summary"))

    @property
    def config(self) -> Row:
        return mapping(self.record.get("config"))

    @cached_property
    def scores(self) -> list[Row]:
        """Scores in bits per byte, those without a usable interval with None for it."""
        return [r for r in score_rows(self.summary) if is_finite(r.get("bits_per_byte"))]

    @cached_property
    def answers(self) -> list[Row]:
        """How each model answered held-out first turns, in the order of the evaluation."""
        return score_rows(self.part("chat"))

    @cached_property
    def metrics(self) -> list[Row]:
        return read_rows(self.folder / "metrics.jsonl")

    @cached_property
    def samples(self) -> list[Row]:
        return read_rows(self.folder / "samples.jsonl")

    def part(self, name: str) -> Row:
        """A part of the summary that is a mapping; empty where it is missing."""
        return mapping(self.summary.get(name))

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Tokens and values of one number of the log, in order, without those not finite."""
        found = {
            number(row["tokens"]): float(row[key])
            for row in self.metrics
            if is_finite(row.get("tokens")) and is_finite(row.get(key))
        }
        tokens = sorted(found)
        return tokens, [found[t] for t in tokens]


@dataclass(frozen=True)
class RunRecord:
    """A run folder as far as it is done. `order` names all stages, `stages` those begun."""

    folder: Path
    about: Row
    order: list[str]
    stages: dict[str, StageRecord] = field(default_factory=dict)
    recipe: str = ""

    @property
    def name(self) -> str:
        return str(self.about.get("name") or self.folder.name)

    @property
    def seconds(self) -> float:
        return math.fsum(stage.seconds for stage in self.stages.values())

    @property
    def peak_memory(self) -> float:
        return max((stage.peak_memory for stage in self.stages.values()), default=0.0)

    def of_kind(self, *kinds: str) -> list[StageRecord]:
        """Stages of these kinds, in their order."""
        return [stage for stage in self.stages.values() if stage.kind in kinds]

    def last(self, *kinds: str) -> StageRecord | None:
        """The last complete stage of these kinds."""
        found = [s for s in self.of_kind(*kinds) if s.status == "complete"]
        return found[-1] if found else None

    @property
    def scored(self) -> StageRecord | None:
        """The last complete evaluation that scored documents."""
        found = [s for s in self.of_kind("evaluate") if s.status == "complete" and s.scores]
        return found[-1] if found else None

    @property
    def answered(self) -> StageRecord | None:
        """The last complete evaluation that asked models to answer."""
        found = [s for s in self.of_kind("evaluate") if s.status == "complete" and s.answers]
        return found[-1] if found else None

    def role(self, stage: StageRecord, score: Row) -> Role:
        """Whose score it is that an evaluation gave."""
        name = str(score.get("name"))
        own = {"model", stage.config.get("model"), *(s.name for s in self.of_kind(*TRAINING_KINDS))}
        if name in own:
            return "model"
        others = stage.config.get("before")
        known = others if isinstance(others, list) else []
        return "before" if name in known or name.startswith("asset:") else "baseline"


def read_run(folder: Path) -> RunRecord:
    """Read a run folder.

    Raises UsageError where it is none, DataError where one of its files is damaged.
    """
    if not (folder / "run.json").is_file():
        raise UsageError("not a run folder (no run.json)", place=folder, fix="see `stemma run`")
    about = read_record(folder / "run.json")
    named = about.get("stages")
    order = list(dict.fromkeys(map(str, named))) if isinstance(named, list) else []
    for name in order:
        if Path(name).name != name or name in ("", ".", ".."):
            place = folder / "run.json: stages"
            raise DataError(f"{name!r} names no stage", place=place, fix=REPEAT)
    records = {name: folder / name / "stage.json" for name in order}
    stages = {
        name: StageRecord(folder / name, read_record(path))
        for name, path in records.items()
        if path.is_file()
    }
    recipe = folder / "recipe.yaml"
    return RunRecord(folder, about, order, stages, read_text(recipe) if recipe.is_file() else "")


def read_text(path: Path) -> str:
    """A text file; bytes that are not UTF-8 become U+FFFD. Raises ResourceError."""
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError as error:
        raise resource_error(error, path) from error


def read_record(path: Path) -> Row:
    """A JSON file that holds one mapping, of a format this version knows."""
    try:
        record = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"damaged ({error})", place=path, fix=REPEAT) from error
    if not isinstance(record, dict):
        raise DataError("damaged (not a mapping)", place=path, fix=REPEAT)
    check_version(record, path)
    return record


def check_version(record: Row, path: Path) -> None:
    """Refuse a file that a later version wrote."""
    version = record.get("format_version")
    if is_finite(version) and number(version) > FORMAT_VERSION:
        what = f"format_version {version} is newer than the {FORMAT_VERSION} this version knows"
        raise UsageError(what, place=path, fix="update stemma-lm")


def read_rows(path: Path) -> list[Row]:
    """Rows of a JSONL file after its header; none where there is no file.

    A last line without its line end is one that a kill cut: it is left out.
    """
    if not path.is_file():
        return []
    rows = list(parsed_lines(read_text(path).split("\n")[:-1], path))
    if rows:
        check_version(rows[0], path)
    return rows[1:]


def parsed_lines(lines: list[str], path: Path) -> Iterator[Row]:
    """Each line as a mapping."""
    for position, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            what = f"damaged ({error})"
            raise DataError(what, place=f"{path}:{position}", fix=REPEAT) from error
        if not isinstance(value, dict):
            raise DataError("damaged (not a mapping)", place=f"{path}:{position}", fix=REPEAT)
        yield value


def mapping(value: object) -> Row:
    """The value where it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def is_finite(value: object) -> bool:
    """A finite number, and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any) -> float:
    """The value where it is a finite number, else 0."""
    return value if is_finite(value) else 0


def score_rows(part: Row) -> list[Row]:
    """The rows under `scores`; an interval that is not usable becomes None."""
    found = part.get("scores")
    rows = [r for r in found if isinstance(r, dict)] if isinstance(found, list) else []
    return [r | {"interval": usable_interval(r.get("interval"))} for r in rows]


def usable_interval(value: Any) -> list[float] | None:
    """The two ends of an interval, or None."""
    usable = isinstance(value, list) and len(value) == 2 and all(map(is_finite, value))
    return value if usable else None
