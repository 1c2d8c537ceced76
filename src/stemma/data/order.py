"""The order of samples: a permutation that is counted, not stored.

Where sample number `index` of an epoch lies is a pure function of (seed, epoch, index), so the
state of the data order is one integer, a resume costs nothing at any offset, and the order does
not depend on how many processes or workers ask. The permutation is a small Feistel network on the
next even number of bits (Luby and Rackoff, 1988), walked until it falls inside the range
(Black and Rogaway, 2002, "cycle walking").
"""

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6

Integers = NDArray[np.uint64]


def mix(x: Integers) -> Integers:
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014): every input bit moves all."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def round_keys(seed: int, epoch: int) -> Integers:
    """One key a round, different for every (seed, epoch)."""
    step = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        base = mix(mix(np.array([seed], dtype=np.uint64) + step) + np.uint64(epoch))
        return mix(base + step * np.arange(1, ROUNDS + 1, dtype=np.uint64))


def permute(index: NDArray[np.int64], size: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Where each index of an epoch lies: a bijection on 0 … size - 1.

    Raises ValueError for an index outside that range.
    """
    index = np.atleast_1d(index)
    if size < 1 or index.min() < 0 or index.max() >= size:
        raise ValueError(f"indices must lie in 0 … {size - 1}")
    half = np.uint64(max(1, (int(size - 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    keys = round_keys(seed, epoch)
    place = index.astype(np.uint64)
    walking = np.ones(len(place), dtype=bool)
    while walking.any():
        left, right = place[walking] >> half, place[walking] & low
        with np.errstate(over="ignore"):
            for key in keys:
                left, right = right, left ^ (mix(right + key) & low)
        place[walking] = (left << half) | right
        walking = place >= size
    return place.astype(np.int64)


def samples_of(
    first: int, count: int, size: int, *, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Samples number `first` … `first + count - 1` of an endless run over epochs.

    Returns their epochs and their places in the store's plan.
    """
    positions = np.arange(first, first + count, dtype=np.int64)
    epochs, index = positions // size, positions % size
    places = np.empty_like(index)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        places[chosen] = permute(index[chosen], size, seed=seed, epoch=int(epoch))
    return epochs, places
