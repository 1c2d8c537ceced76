"""How sure a score is: bootstrap intervals of a ratio.

A score over a text is a ratio of two sums (bits over bytes), so what is drawn again, with
replacement, is the pairs, and the ratio is taken of the sums (Efron and Tibshirani 1993, "An
introduction to the bootstrap", percentile interval of chapter 13). The interval says how much the
score would move with other text of the same kind. It knows nothing of another kind of text, nor
of another training seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stemma.core.errors import DataError, UsageError


@dataclass(frozen=True)
class Interval:
    """A range that holds the true value in `confidence` of such experiments."""

    low: float
    high: float
    confidence: float


def bootstrap_interval(
    pairs: Sequence[tuple[float, float]],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """The percentile interval of sum(first) / sum(second) over independent pairs.

    None where fewer than two pairs count: one number has no spread. Pairs with nothing in the
    second place (an empty document) are left out. The same seed gives the same interval.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise UsageError(
            f"confidence ({confidence}) must lie between 0 and 1, resamples ({resamples}) above 0"
        )
    if any(second < 0 for _, second in pairs):
        raise DataError("a pair has a negative size in its second place")
    first, second = (np.array([p[i] for p in pairs if p[1] > 0], np.float64) for i in (0, 1))
    if len(second) < 2:
        return None
    random = np.random.default_rng(seed)
    ratios = np.empty(resamples)
    for index in range(resamples):  # one at a time: all at once would need pairs x resamples
        drawn = random.integers(len(second), size=len(second))
        ratios[index] = first[drawn].sum() / second[drawn].sum()
    tail = (1 - confidence) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return Interval(float(low), float(high), confidence)
