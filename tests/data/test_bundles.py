"""Bundles: every pair once, none above its places, and the same plan for the same seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stemma.core.errors import DataError
from stemma.data.batches import IGNORED
from stemma.data.bundles import (
    PairStore,
    build_bundle,
    plan_bundles,
    read_bundles,
    write_bundles,
)
from stemma.data.store import Row, in_memory

LENGTHS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=60)


def plan_of(lengths, context=32, seed=0):
    source, target = np.array(lengths).T
    return plan_bundles(source, target, context=context, seed=seed)


@given(LENGTHS, st.integers(1, 80), st.integers(0, 5))
def test_every_pair_that_fits_is_in_one_bundle_and_none_is_too_large(lengths, context, seed):
    plan = plan_of(lengths, context, seed)
    fitting = [n for n, pair in enumerate(lengths) if max(pair) <= context]
    assert sorted(plan.pair.tolist()) == fitting
    assert plan.first[0] == 0 and plan.first[-1] == len(fitting)
    for bundle in range(plan.num_samples):
        pairs = [lengths[n] for n in plan.pair[plan.first[bundle] : plan.first[bundle + 1]]]
        assert pairs
        assert len(pairs) * max(source for source, _ in pairs) <= context
        assert len(pairs) * max(target for _, target in pairs) <= context
        assert plan.pairs[bundle] == sum(target for _, target in pairs)


def test_a_plan_is_a_function_of_the_seed():
    lengths = [(5, 5)] * 40
    plans = [plan_of(lengths, seed=seed).pair.tolist() for seed in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]


def store_of(pairs):
    """Each side as a store of the given ids."""
    sides = [
        in_memory(Row(ids, 1, [True] * len(ids)) for ids in side)
        for side in zip(*pairs, strict=True)
    ]
    return PairStore(*sides)


def test_a_bundle_is_padded_by_lengths_and_never_by_an_id():
    """The padding id 0 is also a token of the sentences."""
    pairs = [([0, 5, 9], [1, 0, 2]), ([7, 9], [1, 0, 0, 0, 2])]
    plan = plan_of([(3, 2), (2, 4)], context=8)
    batch = build_bundle(store_of(pairs), plan, 0)
    assert batch.source_BS.tolist() == [[0, 5, 9], [7, 9, 0]]
    assert batch.real_BS.tolist() == [[True, True, True], [True, True, False]]
    assert batch.inputs_BT.tolist() == [[1, 0, 0, 0], [1, 0, 0, 0]]
    assert batch.targets_BT.tolist() == [[0, 2, IGNORED, IGNORED], [0, 0, 0, 2]]
    assert batch.counted == 6


def test_a_plan_survives_its_file_and_damage_is_seen(tmp_path):
    plan, path = plan_of([(3, 4), (9, 2), (40, 1)]), tmp_path / "plan.safetensors"
    write_bundles(path, plan)
    again = read_bundles(path)
    assert again.context == plan.context
    for name in ("pair", "first", "pairs"):
        assert np.array_equal(getattr(again, name), getattr(plan, name))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="not match its sha256"):
        read_bundles(path)
