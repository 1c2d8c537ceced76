"""What every benchmark does: ours and a peer's work by turns, medians, a line for each peer.

The two sides alternate in one process group and change places from pair to pair, so that whatever
else the machine does meets both alike.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

Work = Callable[[], Any]


def seconds(work: Work) -> float:
    """How long a piece of work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def by_turns(
    ours: Callable[[], float], theirs: Callable[[], float], pairs: int
) -> list[list[float]]:
    """What both sides measure, `pairs` times by turns: [ours, theirs]."""
    found: list[list[float]] = [[], []]
    for pair in range(pairs):
        sides = [(0, ours), (1, theirs)]
        for side, measure in sides if pair % 2 == 0 else sides[::-1]:
            found[side].append(measure())
    return found


def line(
    benchmark: str, peer: str, unit: str, found: Sequence[Sequence[float]], *, more: bool
) -> dict[str, Any]:
    """A peer's line: medians, and a ratio above 1 where we are better: by `more`, or by less."""
    ours, theirs = median(found[0]), median(found[1])
    better = (ours, theirs) if more else (theirs, ours)
    return {
        "benchmark": benchmark,
        "peer": peer,
        "unit": unit,
        "ours": float(f"{ours:.4g}"),
        "theirs": float(f"{theirs:.4g}"),
        "ratio": float(f"{better[0] / max(better[1], 1e-12):.4g}"),
    }


def tell(lines: Sequence[dict[str, Any]], details: dict[str, Any], path: Path) -> None:
    """Write all of it to a file, and print a line for each peer: the last that is printed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"lines": list(lines), **details}, indent=1) + "\n")
    for each in lines:
        print(json.dumps(each), flush=True)


def say(words: str) -> None:
    """Progress, for the person who waits."""
    print(words, file=sys.stderr, flush=True)
