"""The counted permutation: a bijection, the same from anywhere, different by seed and epoch."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stemma.data.batches import Order
from stemma.data.order import permute, samples_of

SIZES = st.integers(1, 3000)
SEEDS = st.integers(0, 2**63 - 1)


@given(size=SIZES, seed=SEEDS, epoch=st.integers(0, 2**31))
def test_every_epoch_visits_every_sample_once(size, seed, epoch):
    assert sorted(permute(np.arange(size), size, seed=seed, epoch=epoch)) == list(range(size))


@given(size=SIZES, seed=SEEDS, data=st.data())
def test_one_index_alone_gives_what_it_gives_among_others(size, seed, data):
    index = data.draw(st.integers(0, size - 1))
    whole = permute(np.arange(size), size, seed=seed, epoch=3)
    assert permute(np.array([index]), size, seed=seed, epoch=3)[0] == whole[index]


def test_seed_and_epoch_change_the_order():
    base = permute(np.arange(1000), 1000, seed=0, epoch=0)
    for seed, epoch in ((1, 0), (0, 1), (2**40, 0)):
        agree = (permute(np.arange(1000), 1000, seed=seed, epoch=epoch) == base).mean()
        assert agree < 0.01  # by chance one in a thousand


def test_the_order_looks_random():
    # of two neighbours the first lies before the second half of the time, within 5 deviations
    order = permute(np.arange(100_000), 100_000, seed=7, epoch=0)
    rising = (np.diff(order) > 0).mean()
    assert abs(rising - 0.5) < 5 * np.sqrt(1 / 12 / 100_000)


def test_a_billion_samples_need_no_table():
    index = np.array([0, 10**9 - 1])
    places = permute(index, 10**9, seed=0, epoch=0)
    assert len(set(places)) == 2 and places.max() < 10**9


def test_endless_run_goes_through_epochs():
    epochs, places = samples_of(5, 10, 7, seed=1)
    assert list(epochs) == [0, 0, 1, 1, 1, 1, 1, 1, 1, 2]
    assert sorted(places[2:9]) == list(range(7))


@pytest.mark.parametrize("index", [-1, 10])
def test_index_outside_is_refused(index):
    with pytest.raises(ValueError, match="0 … 9"):
        permute(np.array([index]), 10, seed=0, epoch=0)


@given(
    size=SIZES,
    seed=SEEDS,
    parts=st.sampled_from([1, 2, 4, 8]),
    step=st.integers(0, 10**6),
)
def test_any_number_of_processes_takes_the_same_samples_in_the_same_order(size, seed, parts, step):
    whole = Order(SimpleNamespace(num_samples=size), seed, batch_size=16)
    shares = [whole.of_part(part, parts) for part in range(parts)]
    for number in range(2):  # epochs, and samples
        pieces = [share.places(step)[number] for share in shares]
        assert np.array_equal(np.concatenate(pieces), whole.places(step)[number])
