"""Can a memory replace what it holds? Fast weights that add against the delta rule.

A memory of 16 x 16 numbers is given 4 to 24 pairs of a key and a value; then every key is written
once more with another value, and read. The keys are random and of length one, so they overlap. What
is added stays, and a read finds the sum of both values; the delta rule writes only the difference
to what the key already reads, which replaces it (arXiv:2102.11174, section 4.2 and section
6.1). Beyond 16 keys, more than there are dimensions, neither can hold all of them.

The error is relative: mean squared error over the mean square of the values. 1 is what a memory
with nothing in it has; a sum of two independent values has at least 1 by itself.

    python -m experiments.overwriting [--quick] [--threads N] [--out FOLDER]
"""

import sys
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F

from experiments.record import COLOURS, Experiment, Numbers, Say, axes_of, grid, middle, run
from stemma.core.seeds import generator_for
from stemma.nn.fast_weight import Additive, Delta, Rule, Tokens, chunked
from stemma.nn.feature_map import Features

RULES: dict[str, Rule] = {"additive": Additive(), "delta": Delta()}
COUNTS, WIDTH, DRAWS = (4, 8, 12, 16, 24), 16, 64
ROUNDS = (1, 2)  # how often each key is written


def read_error(rule: Rule, count: int, rounds: int, seed: int, *, draws: int = DRAWS) -> float:
    """Relative error of reading `count` keys, each written `rounds` times; mean over draws.

    All draws are rows of one batch. The reads come last, as tokens that write a key of zeros.
    """
    stream = generator_for(seed, "pairs", count)
    shape = draws, 1, count, WIDTH
    keys = F.normalize(torch.randn(shape, generator=stream, dtype=torch.float64), dim=-1)
    values = [torch.randn(shape, generator=stream, dtype=torch.float64) for _ in range(rounds)]
    nothing = torch.zeros_like(keys)
    tokens = Tokens(
        query=Features(torch.cat([keys] * (rounds + 1), dim=2)),
        key=Features(torch.cat([keys] * rounds + [nothing], dim=2)),
        value_BHTD=torch.cat([*values, nothing], dim=2),
        rate_BHT=torch.ones(draws, 1, count * (rounds + 1), dtype=torch.float64),
    )
    reads_BHTD, _ = chunked(rule, tokens)
    last = values[-1]
    return float((reads_BHTD[:, :, -count:] - last).square().mean() / last.square().mean())


def measure(quick: bool, say: Say) -> Numbers:
    """Every rule and number of keys."""
    return sweep(range(2 if quick else 3), draws=DRAWS, say=say)


def sweep(seeds: Sequence[int], *, draws: int, say: Say) -> Numbers:
    """Errors of every rule, number of keys and number of times that they are written."""
    rows = []
    for name, rounds, count in product(RULES, ROUNDS, COUNTS):
        found = [
            round(read_error(RULES[name], count, rounds, seed, draws=draws), 4) for seed in seeds
        ]
        row = {"rule": name, "written": rounds, "keys": count, "errors": found}
        rows.append(row | {"median": middle(found)})
        say(f"{name}, {count} keys written {rounds} times: {found}")
    settings = {"width": WIDTH, "draws": draws}
    return {"settings": settings, "seeds": list(seeds), "errors": rows}


def errors(numbers: Numbers, rule: str, keys: int, written: int = 2) -> list[float]:
    """The errors of one cell, one a seed."""
    wanted = rule, written, keys
    rows = numbers["errors"]
    return next(
        row["errors"] for row in rows if (row["rule"], row["written"], row["keys"]) == wanted
    )


def claims(numbers: Numbers) -> dict[str, bool]:
    """What must hold in every seed."""
    pairs = {n: (errors(numbers, "delta", n), errors(numbers, "additive", n)) for n in COUNTS}
    return {
        "delta's error is at most a third of the additive one at 8 rewritten keys": all(
            delta <= additive / 3 for delta, additive in zip(*pairs[8], strict=True)
        ),
        "delta's error is smaller at every number of keys": all(
            delta < additive
            for pair in pairs.values()
            for delta, additive in zip(*pair, strict=True)
        ),
        "beyond the width neither holds them: both errors above 0.5 at 24 keys": all(
            min(found) > 0.5 for found in pairs[24]
        ),
    }


def table(numbers: Numbers) -> str:
    """Medians, rewritten and written once."""
    lines = [
        (
            keys,
            *(middle(errors(numbers, rule, keys, n)) for n in ROUNDS[::-1] for rule in RULES),
            errors(numbers, "additive", keys),
            errors(numbers, "delta", keys),
        )
        for keys in COUNTS
    ]
    head = ("keys", *(f"{rule}, written {n}x" for n in ROUNDS[::-1] for rule in RULES))
    return grid((*head, "additive 2x by seed", "delta 2x by seed"), lines)


def draw(numbers: Numbers) -> Any:
    """Error by number of keys."""
    figure, (place,) = axes_of(1, width=5.0)
    for (name, colour), (rounds, line) in product(
        zip(RULES, COLOURS, strict=False), zip(ROUNDS, (":", "-"), strict=True)
    ):
        medians = [middle(errors(numbers, name, keys, rounds)) for keys in COUNTS]
        label = f"{name}, each key written {'twice' if rounds == 2 else 'once'}"
        place.plot(COUNTS, medians, "o" + line, color=colour, label=label)
    place.axvline(WIDTH, color="grey", linewidth=0.8)
    place.annotate("width of a key", (WIDTH, 0.02), xytext=(3, 0), textcoords="offset points")
    place.axhline(1, color="grey", linestyle="--", linewidth=0.8, label="an empty memory")
    place.set(xlabel="keys", ylabel="relative error of a read", ylim=(0, None))
    place.set_xticks(COUNTS)
    place.legend(fontsize=8)
    return figure


EXPERIMENT = Experiment("overwriting", __doc__, measure, claims, table, draw)

if __name__ == "__main__":
    sys.exit(run(EXPERIMENT))
