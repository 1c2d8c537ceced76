"""Bootstrap intervals: they cover, they repeat, they respect the weights."""

import numpy as np
import pytest

from stemma.core.errors import DataError, UsageError
from stemma.eval.statistics import bootstrap_interval


def sample_pairs(random, count):
    """Chunks of 500 to 2,000 bytes at 2 bits per byte on average, noise independent."""
    sizes = random.integers(500, 2000, size=count)
    return [(float(n * random.normal(2.0, 0.3)), int(n)) for n in sizes]


def test_covers_the_truth_about_as_often_as_it_says():
    """95% nominal; a percentile bootstrap over 40 pairs gives 92% to 95%; 200 trials: sd 1.6%."""
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        interval = bootstrap_interval(sample_pairs(random, 40), resamples=200)
        hits += interval.low <= 2.0 <= interval.high
    assert 0.87 <= hits / 200 <= 0.99


def test_width_is_the_textbook_standard_error_for_equal_sizes():
    """With equal sizes the ratio is a mean, so the width is 2 x 1.96 x s / sqrt(n)."""
    values = np.random.default_rng(1).normal(3.0, 1.0, size=400)
    interval = bootstrap_interval([(float(v), 1) for v in values], resamples=4000)
    expected = 2 * 1.96 * values.std() / np.sqrt(400)
    assert interval.high - interval.low == pytest.approx(expected, rel=0.06)
    assert interval.low < values.mean() < interval.high


def test_same_seed_same_interval_and_other_seed_another():
    pairs = sample_pairs(np.random.default_rng(2), 30)
    assert bootstrap_interval(pairs, seed=3) == bootstrap_interval(pairs, seed=3)
    assert bootstrap_interval(pairs, seed=3) != bootstrap_interval(pairs, seed=4)


def test_more_confidence_is_wider():
    pairs = sample_pairs(np.random.default_rng(2), 30)
    narrow, wide = (bootstrap_interval(pairs, confidence=c) for c in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_equal_ratios_have_no_spread_whatever_their_sizes():
    interval = bootstrap_interval([(3.0 * n, n) for n in (1, 10, 1000)])
    assert interval.low == pytest.approx(3.0) == interval.high


def test_one_pair_has_no_interval_and_empty_pairs_do_not_count():
    assert bootstrap_interval([]) is None
    assert bootstrap_interval([(5.0, 2)]) is None
    assert bootstrap_interval([(5.0, 2), (0.0, 0)]) is None


def test_bad_input_is_named():
    with pytest.raises(UsageError, match="confidence"):
        bootstrap_interval([(1.0, 1)], confidence=95)
    with pytest.raises(DataError, match="negative"):
        bootstrap_interval([(1.0, 1), (1.0, -1)])
