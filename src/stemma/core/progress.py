"""Messages and progress on stderr: a bar where a person watches, JSON lines where nobody does.

Results belong to stdout and are printed by the command line alone; everything here is for the
person who waits, or for the log that is read afterwards.
"""

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from stemma.core.errors import printable

LOG = logging.getLogger("stemma")
EVERY = 10.0  # seconds between two JSON lines


class Update(Protocol):
    """Tell how far the work is: `update(done, loss=3.2, …)`."""

    def __call__(self, done: float, **numbers: Any) -> None: ...


class OneLine(logging.Formatter):
    """`warning: text` for people; text from files is made safe to print."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return level + printable(record.getMessage())


class JsonLine(logging.Formatter):
    """One JSON object a message."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps({"level": record.levelname.lower(), "message": record.getMessage()})


def set_up() -> None:
    """Send the package's messages to stderr; called once by the command line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine() if sys.stderr.isatty() else JsonLine())
    LOG.handlers[:] = [handler]
    LOG.propagate = False
    LOG.setLevel(logging.INFO)


def be_quiet() -> None:
    """Say no more than warnings: another process tells how far the work is."""
    LOG.setLevel(logging.WARNING)


@contextmanager
def silence(label: str, total: float) -> Iterator[Update]:
    """Show nothing."""
    yield lambda done, **numbers: None


@contextmanager
def progress(label: str, total: float) -> Iterator[Update]:
    """Show work of `total` units on stderr while the block runs."""
    show = bar if sys.stderr.isatty() else json_lines
    show = show if LOG.isEnabledFor(logging.INFO) else silence
    with show(label, total) as update:
        yield update


@contextmanager
def bar(label: str, total: float) -> Iterator[Update]:
    """A bar with the time left and the newest numbers."""
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=28),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[numbers]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as display:
        task = display.add_task(label, total=total, numbers="")

        def update(done: float, **numbers: Any) -> None:
            text = "  ".join(
                f"{name.replace('_', ' ')} {spelled(value)}" for name, value in numbers.items()
            )
            display.update(task, completed=done, numbers=text)

        yield update


@contextmanager
def json_lines(label: str, total: float) -> Iterator[Update]:
    """A line now and then, and one at the end."""
    started = time.monotonic()
    shown, last = started, (0.0, dict[str, Any]())

    def line() -> None:
        seconds = round(time.monotonic() - started, 1)
        entry = {"stage": label, "done": last[0], "total": total, "seconds": seconds, **last[1]}
        print(json.dumps(entry), file=sys.stderr, flush=True)  # noqa: T201

    def update(done: float, **numbers: Any) -> None:
        nonlocal shown, last
        last = (
            done,
            {n: float(f"{v:.4g}") if isinstance(v, float) else v for n, v in numbers.items()},
        )
        if time.monotonic() - shown >= EVERY:
            shown = time.monotonic()
            line()

    yield update
    line()


def spelled(value: Any) -> str:
    """A number as people read it: three significant digits, thousands apart."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
