"""The n-gram model is a probability distribution, and the one of Chen and Goodman's equations."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stemma.core.errors import DataError, UsageError
from stemma.eval.ngram import NgramModel, discounts


def sample_sequences(seed, num_symbols, lengths):
    """Skewed, repetitive text: a random first-order chain over all but the last symbol."""
    random = np.random.default_rng(seed)
    transition = random.dirichlet(np.full(num_symbols - 1, 0.3), size=num_symbols - 1)
    sequences = []
    for length in lengths:
        sequence = [0]
        for _ in range(length - 1):
            sequence.append(random.choice(num_symbols - 1, p=transition[sequence[-1]]))
        sequences.append(np.array(sequence[:length], np.int64))
    return sequences


class Reference:
    """The same model from dictionaries of tuples, term by term; 'S' is the start symbol."""

    def __init__(self, sequences, order, num_symbols):
        self.order, self.num_symbols = order, num_symbols
        plain = defaultdict(Counter)
        for sequence in sequences:
            padded = ["S"] * (order - 1) + [int(s) for s in sequence]
            for end in range(order - 1, len(padded)):
                for length in range(1, order + 1):
                    plain[length][tuple(padded[end - length + 1 : end + 1])] += 1
        self.count = {order: plain[order]}
        for length in range(1, order):
            left = defaultdict(set)
            for gram in plain[length + 1]:
                left[gram[1:]].add(gram[0])
            self.count[length] = {
                gram: plain[length][gram] if gram[0] == "S" else len(left[gram])
                for gram in plain[length]
            }
        self.discount = {n: self.equation_17(self.count[n].values()) for n in self.count}

    @staticmethod
    def equation_17(counts):
        n = Counter(counts)
        result = {}
        for k in (1, 2, 3):
            result[k] = k / 2
            if n[1] and n[k] and n[k + 1]:
                y = n[1] / (n[1] + 2 * n[2])
                exact = k - (k + 1) * y * n[k + 1] / n[k]
                result[k] = exact if exact > 0 else k / 2
        return result

    def probability(self, symbol, context):
        """`context` holds the order - 1 symbols before, or fewer for a lower order."""
        below = self.probability(symbol, context[1:]) if context else 1 / self.num_symbols
        length = len(context) + 1
        count, discount = self.count[length], self.discount[length]
        after = {g[-1]: c for g, c in count.items() if g[:-1] == tuple(context)}
        if not after:
            return below
        total = sum(after.values())
        gamma = sum(discount[min(c, 3)] for c in after.values()) / total
        c = after.get(symbol, 0)
        own = (c - discount[min(c, 3)]) / total if c else 0.0
        return own + gamma * below


def distribution(model, context):
    """p(. | context) for a context that opens a sequence."""
    rows = [np.append(context, symbol) for symbol in range(model.num_symbols)]
    return 2.0 ** np.array([model.log2_probabilities(row)[-1] for row in rows])


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_probabilities_of_all_symbols_sum_to_one(order):
    """After seen, half-seen and never-seen contexts, at the start of a sequence and within it."""
    model = NgramModel.fit(sample_sequences(order, 6, [300, 40, 1, 7]), order, 6)
    random = np.random.default_rng(9)
    for length in (0, 1, 2, 3, 6, 9):
        for _ in range(15):
            p = distribution(model, random.integers(6, size=length))
            assert p.min() > 0
            assert abs(p.sum() - 1) < 1e-12


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("lengths", [[200], [60, 1, 3, 0, 90], [2] * 12])
def test_equals_the_equations_over_dictionaries(order, lengths):
    """Trained text, other text of the kind, and noise with a symbol that training never had."""
    train = sample_sequences(1, 5, lengths)
    model, slow = NgramModel.fit(train, order, 5), Reference(train, order, 5)
    noise = np.random.default_rng(3).integers(5, size=40)
    for sequence in (train[0], sample_sequences(2, 5, [40])[0], noise, noise[:1]):
        padded = ["S"] * (order - 1) + [int(s) for s in sequence]
        expected = [
            slow.probability(padded[end], padded[end - order + 1 : end])
            for end in range(order - 1, len(padded))
        ]
        np.testing.assert_allclose(
            model.log2_probabilities(sequence), np.log2(expected), rtol=0, atol=1e-11
        )


def test_discounts_are_equation_17():
    """n1 = 6, n2 = 3, n3 = 2, n4 = 1: Y = 1/2, D1 = 1/2, D2 = 1, D3+ = 2."""
    counts = np.repeat([1, 2, 3, 4, 9], [6, 3, 2, 1, 5])
    np.testing.assert_allclose(discounts(counts), [0, 0.5, 1.0, 2.0])


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([7, 7, 9], [0, 0.5, 1.0, 1.5]),  # nothing is rare
        ([1, 1, 1], [0, 0.5, 1.0, 1.5]),  # everything is
        ([1, 1, 2, 3, 3, 3, 3], [0, 0.5, 1.0, 1.5]),  # equation 17 gives D2 = -4
    ],
)
def test_discounts_fall_back_to_half_where_the_equation_is_silent(counts, expected):
    np.testing.assert_allclose(discounts(np.array(counts)), expected)


@settings(max_examples=50, deadline=None)
@given(counts=st.lists(st.integers(1, 8), min_size=1, max_size=60))
def test_a_discount_never_takes_more_than_the_count(counts):
    d = discounts(np.array(counts))
    assert d[0] == 0
    assert all(0 < d[k] <= k for k in (1, 2, 3))


def test_no_ngram_spans_two_sequences():
    """Where one sequence follows another must not matter, so their order cannot either."""
    parts = sample_sequences(4, 5, [30, 20, 25])
    one, other = (NgramModel.fit(p, 3, 5) for p in (parts, parts[::-1]))
    held = sample_sequences(5, 5, [50])[0]
    np.testing.assert_array_equal(one.log2_probabilities(held), other.log2_probabilities(held))


def test_large_vocabularies_and_long_orders_do_not_overflow():
    """65,536 symbols at order 9 would need 153 bits if an n-gram were packed whole."""
    random = np.random.default_rng(0)
    text = random.choice([0, 1, 65_534, 65_535], size=400)
    model = NgramModel.fit([text], 9, 65_536)
    small = NgramModel.fit([np.searchsorted([0, 1, 65_534, 65_535], text)], 9, 4)
    # The alphabets differ in the uniform share alone, which is last in a long chain of backoffs.
    large_bits, small_bits = (
        -m.log2_probabilities(t).sum()
        for m, t in ((model, text), (small, np.searchsorted([0, 1, 65_534, 65_535], text)))
    )
    assert 0 <= large_bits - small_bits < 0.05 * small_bits


def test_longer_contexts_help_on_structured_text():
    train, held = sample_sequences(7, 8, [4000]), sample_sequences(7, 8, [4000, 500])[1]
    bits = [-NgramModel.fit(train, n, 8).log2_probabilities(held).mean() for n in (1, 2)]
    assert bits[1] < bits[0] - 0.3


def test_bad_input_is_named():
    model = NgramModel.fit([[0, 1, 2]], 2, 3)
    assert model.log2_probabilities([]).shape == (0,)
    with pytest.raises(DataError, match="between 0 and 3"):
        model.log2_probabilities([0, 3])
    with pytest.raises(DataError, match="between -1 and 1"):
        NgramModel.fit([[0, -1, 1]], 2, 3)
    for empty in ([], [[]]):
        with pytest.raises(DataError, match="no symbols"):
            NgramModel.fit(empty, 2, 3)
    with pytest.raises(UsageError, match="order"):
        NgramModel.fit([[0]], 0, 3)
