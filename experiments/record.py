"""What every experiment does around its measurement: options, progress, a record, a verdict.

An experiment hands over four functions: `measure(quick, say)` gives its numbers, `claims(numbers)`
says what must hold of them, `table(numbers)` prints them and `draw(numbers)` makes a picture. The
record is one JSON file with numbers, claims, versions and wall time; the picture lies beside it.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy
import torch

import stemma
from stemma.core.extras import require
from stemma.core.files import write_json

Numbers = dict[str, Any]
Say = Callable[[str], None]
INK = "#1a1a1a"
COLOURS = ("#b2432f", "#2a6f97", "#4b8b3b", "#8a5a9e", "#b8860b")
LOOK = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "text.color": INK}


class Experiment(NamedTuple):
    """A question, how it is measured, and what must come out. `words` is its module's docstring."""

    name: str
    words: str
    measure: Callable[[bool, Say], Numbers]
    claims: Callable[[Numbers], dict[str, bool]]
    table: Callable[[Numbers], str]
    draw: Callable[[Numbers], Any]


def run(experiment: Experiment, arguments: Sequence[str] | None = None) -> int:
    """Measure, write `NAME.json` and `NAME.png`, print; 1 where a claim does not hold."""
    options = read_options(experiment, arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    started = time.perf_counter()
    numbers = experiment.measure(options.quick, say)
    claims = experiment.claims(numbers)
    record = {
        "experiment": experiment.name,
        "question": experiment.words.splitlines()[0],
        "quick": options.quick,
        **numbers,
        "claims": claims,
        "seconds": round(time.perf_counter() - started, 1),
        "versions": versions(),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    save(record, experiment.draw(numbers), options.out / experiment.name)
    print(experiment.table(numbers))
    for claim, holds in claims.items():
        print(f"{'holds' if holds else 'FAILS'}: {claim}")
    print(f"{record['seconds']} s; {options.out / experiment.name}.json and .png")
    return 0 if all(claims.values()) else 1


def read_options(experiment: Experiment, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options that all experiments share."""
    parser = argparse.ArgumentParser(
        description=experiment.words, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two seeds, the direction alone")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; 0: its choice")
    default = Path("runs/experiments") / experiment.name
    parser.add_argument("--out", type=Path, default=default, help="folder of record and picture")
    return parser.parse_args(arguments)


def say(line: str) -> None:
    """Progress, for the person who waits."""
    print(line, file=sys.stderr, flush=True)


def save(record: Numbers, figure: Any, path: Path) -> None:
    """Write the record as PATH.json and the picture as PATH.png."""
    write_json(path.with_suffix(".json"), record)
    figure.savefig(path.with_suffix(".png"), dpi=150)


def versions() -> dict[str, Any]:
    """What the numbers may depend on."""
    return {
        "stemma": stemma.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
    }


def axes_of(columns: int, *, width: float = 4.0, height: float = 3.4, rows: int = 1) -> Any:
    """A figure and its axes, `rows` x `columns` of them in one list."""
    matplotlib = require("report")
    figures = require("report", "matplotlib.figure")
    matplotlib.rcParams.update(LOOK)
    figure = figures.Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def middle(values: Sequence[float | None]) -> float | None:
    """The median over seeds; a run that diverged (None) counts as worse than any other."""
    found = median(float("inf") if value is None else value for value in values)
    return None if found == float("inf") else round(found, 5)


def grid(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in plain text, columns aligned."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    ]
    return "\n".join(lines)
