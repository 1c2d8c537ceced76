"""An interpolated n-gram model with modified Kneser-Ney smoothing: the yardstick before networks.

Chen and Goodman (1999), "An empirical study of smoothing techniques for language modeling",
Computer Speech and Language 13: Kneser-Ney's lower orders are section 2.7, the three discounts
and the interpolation are section 3 (the discounts are equation 17). The symbols are integers:
bytes, or token ids.

Notable: there is no dictionary of strings. An n-gram is a pair of (rank of its context among the
contexts that occur, symbol) packed into one integer, so a level of the model is a sorted array
and a look-up is a binary search. That holds for any order and vocabulary without wide keys. Five
million bytes at order 5 take seconds and well under a gigabyte.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stemma.core.errors import DataError, UsageError

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

UNSEEN = -1  # the rank of an n-gram that did not occur in training
MAX_PACKED = 2**63  # a packed n-gram must fit in a signed 64-bit integer


@dataclass(frozen=True)
class Level:
    """All n-grams of one length. Its contexts are the n-grams of the level before it.

    `keys` is sorted; an n-gram's position in it is its rank. `kept` is the n-gram's own share
    (c - D(c)) / sum of c. `backoff`, indexed by the rank of the context, is gamma: the share
    that the next shorter context distributes, 1 where nothing ever followed the context.
    """

    keys: Integers
    kept: Floats
    backoff: Floats

    @property
    def start(self) -> int:
        """The rank, one past the n-grams that occur, of the context that is all start symbols."""
        return len(self.keys)


def discounts(counts: Integers) -> Floats:
    """D(0), D(1), D(2) and D(3+), Chen and Goodman's equation 17, as an array of four.

    With n_k the number of n-grams that have count k, and Y = n_1 / (n_1 + 2 n_2):
    D(k) = k - (k + 1) Y n_{k+1} / n_k. Small or unusual data can make a count of counts zero, or
    a discount negative. The equation says nothing then, and that discount is k / 2, the middle of
    its range. Every discount is thus above zero, and so is the probability of an unseen symbol.
    """
    found = np.bincount(np.minimum(counts, 5), minlength=6).astype(np.float64)
    result = np.arange(4) / 2
    for k in (1, 2, 3):
        if found[1] and found[k] and found[k + 1]:
            share = found[1] / (found[1] + 2 * found[2])
            discount = k - (k + 1) * share * found[k + 1] / found[k]
            result[k] = discount if discount > 0 else result[k]
    return result


def smooth(keys: Integers, counts: Integers, num_contexts: int, num_symbols: int) -> Level:
    """Turn the counts of one level into its shares: section 3's interpolated form."""
    context = keys // num_symbols
    discount = discounts(counts)[np.minimum(counts, 3)]
    total = np.bincount(context, weights=counts, minlength=num_contexts)
    freed = np.bincount(context, weights=discount, minlength=num_contexts)
    backoff = np.divide(freed, total, out=np.ones(num_contexts), where=total > 0)
    return Level(keys, (counts - discount) / total[context], backoff)


@dataclass(frozen=True)
class Grams:
    """The different n-grams of one length, before smoothing."""

    keys: Integers  # rank of the context * num_symbols + symbol, sorted
    first: Integers  # a position of the text where the n-gram ends
    ranks: Integers  # for each position of the text, which n-gram ends there
    counts: Integers


def grams(context: Integers, symbols: Integers, num_symbols: int) -> Grams:
    """The n-grams that end at each position, given the rank of the context of each position."""
    keys, first, ranks, counts = np.unique(
        context * num_symbols + symbols, return_index=True, return_inverse=True, return_counts=True
    )
    return Grams(keys, first, ranks, counts)


def contexts(ranks: Integers, offsets: Integers, start: int) -> Integers:
    """The rank of the n-gram that ends just before each position; `start` where a sequence opens.

    `offsets` counts each position from the beginning of its sequence.
    """
    before = np.empty_like(ranks)
    before[1:] = ranks[:-1]
    before[offsets == 0] = start
    return before


def checked(sequence: ArrayLike, num_symbols: int) -> Integers:
    """The sequence as 64-bit integers; a symbol outside the alphabet is refused."""
    symbols = np.asarray(sequence, dtype=np.int64)
    if symbols.size and not 0 <= symbols.min() <= symbols.max() < num_symbols:
        raise DataError(
            f"symbols lie between {symbols.min()} and {symbols.max()}, "
            f"the n-gram model has 0 to {num_symbols - 1}",
            fix="use the tokenizer that made the symbols, with its own vocabulary size",
        )
    return symbols


@dataclass(frozen=True)
class NgramModel:
    """p(symbol | the order - 1 symbols before it), for integer symbols 0 <= s < num_symbols.

    Each sequence is read as if endless start symbols stood before it; the start symbol itself is
    never predicted. The lowest order is interpolated with the uniform distribution.

    >>> model = NgramModel.fit([np.array([0, 1, 0, 1, 0])], order=2, num_symbols=3)
    >>> model.log2_probabilities(np.array([0, 1])).shape
    (2,)
    """

    num_symbols: int
    levels: tuple[Level, ...]  # from order 1 upwards

    @classmethod
    def fit(cls, sequences: Sequence[ArrayLike], order: int, num_symbols: int) -> "NgramModel":
        """Count and smooth. The sequences are independent: no n-gram spans two of them.

        A lower order counts in how many different longer n-grams its n-gram is the tail (N1+ of
        section 2.7). Before an n-gram that reaches into the start symbols there can be nothing
        else, so that one keeps its plain count. Raises DataError for no symbols at all.
        """
        if order < 1 or num_symbols < 1:
            raise UsageError(f"order ({order}) and num_symbols ({num_symbols}) must be at least 1")
        parts = [checked(sequence, num_symbols) for sequence in sequences]
        symbols = np.concatenate([*parts, np.empty(0, np.int64)])
        if not symbols.size:
            raise DataError("there are no symbols to count", fix="hand in a text that is not empty")
        if (symbols.size + 1) * num_symbols >= MAX_PACKED:
            raise UsageError(f"{symbols.size} symbols of {num_symbols} kinds are too many to count")
        offsets = np.concatenate([np.arange(len(part)) for part in parts])
        return cls(num_symbols, tuple(_levels(symbols, offsets, order, num_symbols)))

    def log2_probabilities(self, sequence: ArrayLike) -> Floats:
        """log2 p of each symbol given those before it in the same sequence: one per symbol."""
        symbols = checked(sequence, self.num_symbols)
        offsets = np.arange(len(symbols))
        probability = np.full(len(symbols), 1 / self.num_symbols)
        context = np.zeros(len(symbols), np.int64)  # order 1 has one context: the empty one
        for level in self.levels:
            known = context != UNSEEN
            key = np.where(known, context * self.num_symbols + symbols, UNSEEN)
            rank = np.searchsorted(level.keys, key)
            rank = np.minimum(rank, len(level.keys) - 1)
            found = level.keys[rank] == key
            probability *= np.where(known, level.backoff[context], 1.0)
            probability += np.where(found, level.kept[rank], 0.0)
            context = contexts(np.where(found, rank, UNSEEN), offsets, level.start)
        bits: Floats = np.log2(probability)
        return bits


def _levels(symbols: Integers, offsets: Integers, order: int, num_symbols: int) -> Iterator[Level]:
    """Rank and count the n-grams length by length; each level waits for the next one's tails."""
    found, num_contexts = grams(np.zeros_like(symbols), symbols, num_symbols), 1
    for length in range(1, order):
        longer = grams(contexts(found.ranks, offsets, len(found.keys)), symbols, num_symbols)
        # The tail of an n-gram is the shorter n-gram that ends where it ends.
        different = np.bincount(found.ranks[longer.first], minlength=len(found.keys))
        opening = offsets[found.first] < length - 1
        counts = np.where(opening, found.counts, different)
        yield smooth(found.keys, counts, num_contexts, num_symbols)
        found, num_contexts = longer, len(found.keys) + 1
    yield smooth(found.keys, found.counts, num_contexts, num_symbols)
