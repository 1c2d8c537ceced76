"""Comparisons find what is there and nothing else."""

import random

import pytest

from stemma.eval.comparison import Trial, compare, student

# Student's quantiles, two-sided, from the printed tables (Fisher and Yates, table III)
TABLE = {
    (1, 0.05): 12.706,
    (2, 0.05): 4.303,
    (3, 0.05): 3.182,
    (4, 0.05): 2.776,
    (7, 0.05): 2.365,
    (10, 0.05): 2.228,
    (2, 0.01): 9.925,
    (5, 0.01): 4.032,
    (8, 0.001): 5.041,
}


@pytest.mark.parametrize(("at", "value"), TABLE.items(), ids=str)
def test_quantiles_are_those_of_the_tables(at, value):
    assert student(*at) == pytest.approx(value, abs=6e-4)


def trial(seed, level, noise=0.0, draw=None):
    """A network of `level` bits a byte on forty pieces of ten bytes."""
    draw = draw or random.Random(seed)
    pieces = [(10 * (level + draw.gauss(0, noise)), 10.0) for _ in range(40)]
    return Trial(seed, sum(p[0] for p in pieces) / 400, pieces)


def test_a_clear_difference_is_significant_and_the_best_comes_first():
    found = compare(
        {
            "worse": [trial(s, 2.5, 0.01) for s in range(3)],
            "better": [trial(s, 2.0, 0.01) for s in range(3)],
        }
    )
    assert [row["network"] for row in found["order"]] == ["better", "worse"]
    (against,) = found["against_best"]
    assert against["network"] == "worse" and against["significant"]
    assert against["behind"] == pytest.approx(0.5, abs=0.02)


def test_a_difference_of_one_seed_is_not_significant():
    found = compare({"a": [trial(0, 2.0)], "b": [trial(0, 2.5)]})
    assert found["order"][0]["interval"] is None
    assert not found["against_best"][0]["significant"]


def test_seeds_that_disagree_are_not_significant_however_long_the_text():
    levels = {"a": (2.0, 2.1, 2.0), "b": (2.2, 2.0, 2.1)}
    found = compare({n: [trial(s, v) for s, v in enumerate(vs)] for n, vs in levels.items()})
    (against,) = found["against_best"]
    assert against["over_text"][0] > 0 and not against["significant"]


def test_one_piece_of_text_alone_is_not_significant():
    """All of the difference lies in one piece of forty."""

    def with_gap(seed, gap):
        pieces = [(20.0, 10.0)] * 39 + [(20.0 + gap, 10.0)]
        return Trial(seed, sum(p[0] for p in pieces) / 400, pieces)

    found = compare(
        {"a": [with_gap(s, 0.0) for s in range(3)], "b": [with_gap(s, 40.0) for s in range(3)]}
    )
    (against,) = found["against_best"]
    assert against["over_seeds"][0] > 0 and not against["significant"]


@pytest.mark.parametrize(("seeds", "text"), [(0.01, 0.005), (0.01, 0.05)])
def test_chance_alone_is_rarely_called_significant(seeds, text):
    """Thirteen equal networks and three seeds, 150 times: any false difference in about 5 %."""
    draw, wrong = random.Random(5), 0
    for _ in range(150):
        base = [draw.gauss(2.0, 0.02) for _ in range(3)]
        rows = {
            f"n{k}": [trial(s, base[s] + draw.gauss(0, seeds), text, draw) for s in range(3)]
            for k in range(13)
        }
        wrong += any(row["significant"] for row in compare(rows)["against_best"])
    assert wrong <= 0.05 * 150 + 2 * (150 * 0.05 * 0.95) ** 0.5


def test_a_true_difference_is_found_with_three_seeds():
    """Ten equal networks, two far behind by eight deviations of a seed: the two are named."""
    draw, found = random.Random(7), 0
    for _ in range(20):
        base = [draw.gauss(2.0, 0.02) for _ in range(3)]
        rows = {
            f"n{k}": [
                trial(s, base[s] + 0.08 * (k > 9) + draw.gauss(0, 0.01), 0.05, draw)
                for s in range(3)
            ]
            for k in range(12)
        }
        named = {r["network"] for r in compare(rows)["against_best"] if r["significant"]}
        found += named == {"n10", "n11"}
    assert found >= 16


def test_other_seeds_are_refused():
    with pytest.raises(ValueError, match="not trained from the same seeds"):
        compare({"a": [trial(0, 2.0)], "b": [trial(1, 2.5)]})
