"""Comparing networks fairly: what differs beyond chance, over seeds and over text.

Two things could have come out otherwise: the seed, and the held-out text. Trials of one seed saw
the same tokens in the same order, so networks are compared seed by seed, in the two-way table of
networks and seeds: what a network and a seed do not explain is chance (Fisher, "Statistical methods
for research workers", 1925, section 42). Its spread is that of all networks together, or of the two
compared where theirs is larger. Over text it is the bootstrap over pieces, mean over seeds. A
difference counts as significant only where both intervals leave out zero.

Of many comparisons some would do so by chance. The best network is found in the same data, so it is
as if every pair were compared: the limits are Bonferroni's, 5 % over all pairs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np

RESAMPLES = 4000
LEVEL = 0.05  # chance of any false difference among all pairs


@dataclass(frozen=True)
class Trial:
    """One network trained from one seed: its score, and bits and bytes of each scored piece."""

    seed: int
    bits_per_byte: float
    pieces: Sequence[tuple[float, float]]


def compare(trials: Mapping[str, Sequence[Trial]], *, seed: int = 0) -> dict[str, Any]:
    """Means with intervals, best first, and every network against the best.

    All networks must have the same seeds and pieces. With one seed there is no interval over
    seeds, and nothing is called significant.
    """
    means = {name: mean(t.bits_per_byte for t in rows) for name, rows in trials.items()}
    order = sorted(means, key=means.__getitem__)
    others = order[1:]
    level = LEVEL / max(1, len(order) * (len(order) - 1) // 2)
    rows = [
        {
            "network": name,
            "bits_per_byte": means[name],
            "interval": interval([t.bits_per_byte for t in trials[name]], level=LEVEL),
        }
        for name in order
    ]
    chance = unexplained([[t.bits_per_byte for t in trials[name]] for name in order])
    against = [
        against_best(name, order[0], trials, chance=chance, level=level, seed=seed)
        for name in others
    ]
    return {"order": rows, "against_best": against, "level": level}


@dataclass(frozen=True)
class Chance:
    """The variance that neither network nor seed explains, and its degrees of freedom."""

    variance: float
    degrees: int


def unexplained(table: Sequence[Sequence[float]]) -> Chance | None:
    """What is left of a table of networks and seeds beside both means; None for a single seed.

    >>> unexplained([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]])   # each seed moves both alike
    Chance(variance=0.0, degrees=2)
    """
    networks, seeds = len(table), len(table[0])
    degrees = (networks - 1) * (seeds - 1)
    if degrees < 1:
        return None
    values = np.array(table, dtype=np.float64)
    rest = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
    return Chance(float((rest**2).sum() / degrees), degrees)


def against_best(
    name: str,
    best: str,
    trials: Mapping[str, Sequence[Trial]],
    *,
    chance: Chance | None,
    level: float,
    seed: int,
) -> dict[str, Any]:
    """By how much a network is behind the best, with both intervals."""
    pairs = list(zip(trials[name], trials[best], strict=True))
    if any(a.seed != b.seed for a, b in pairs):
        raise ValueError(f"{name} and {best} were not trained from the same seeds")
    over_seeds = seed_interval(
        [a.bits_per_byte - b.bits_per_byte for a, b in pairs], chance=chance, level=level
    )
    over_text = text_interval(pairs, level=level, seed=seed)
    both = [found for found in (over_seeds, over_text) if found is not None]
    return {
        "network": name,
        "behind": mean(a.bits_per_byte - b.bits_per_byte for a, b in pairs),
        "over_seeds": over_seeds,
        "over_text": over_text,
        "significant": len(both) == 2 and all(low > 0 for low, _ in both),
    }


def seed_interval(
    differences: Sequence[float], *, chance: Chance | None, level: float
) -> tuple[float, float] | None:
    """The interval of a mean difference over seeds; None for one seed."""
    if chance is None or len(differences) < 2:
        return None
    # a difference of two has twice the variance of one
    variance = max(2 * chance.variance, stdev(differences) ** 2)
    spread = student(chance.degrees, level) * math.sqrt(variance / len(differences))
    return mean(differences) - spread, mean(differences) + spread


def interval(values: Sequence[float], *, level: float) -> tuple[float, float] | None:
    """Student's interval of the mean of normal values; None for fewer than two.

    >>> low, high = interval([1.0, 2.0, 3.0], level=0.05)
    >>> round(low, 3), round(high, 3)
    (-0.484, 4.484)
    """
    if len(values) < 2:
        return None
    middle = mean(values)
    spread = student(len(values) - 1, level) * stdev(values) / math.sqrt(len(values))
    return middle - spread, middle + spread


def text_interval(
    pairs: Sequence[tuple[Trial, Trial]], *, level: float, seed: int
) -> tuple[float, float] | None:
    """The bootstrap interval of the difference over pieces of text, each its mean over seeds."""
    if len(pairs[0][0].pieces) < 2:
        return None
    bits = np.mean([[p[0] for p in a.pieces] for a, _ in pairs], axis=0)
    other = np.mean([[p[0] for p in b.pieces] for _, b in pairs], axis=0)
    sizes = np.array([p[1] for p in pairs[0][0].pieces])
    random = np.random.default_rng(seed)
    drawn = random.integers(len(sizes), size=(RESAMPLES, len(sizes)))
    found = (bits - other)[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(found, [level / 2, 1 - level / 2])
    return float(low), float(high)


def student(degrees: int, level: float) -> float:
    """The two-sided quantile of Student's distribution, by halving intervals of its integral.

    >>> round(student(2, 0.05), 3), round(student(9, 0.01), 3)
    (4.303, 3.25)
    """
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        if 2 * (1 - student_share(middle, degrees)) > level:
            low = middle
        else:
            high = middle
    return low


def student_share(value: float, degrees: int) -> float:
    """P(t <= value) for whole degrees of freedom: Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(value / math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    even = degrees % 2 == 0
    term = total = sine if even else cosine * sine
    for k in range(2 if even else 3, degrees, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    if even:
        return 0.5 + total / 2
    return 0.5 + (angle + (total if degrees > 1 else 0.0)) / math.pi
