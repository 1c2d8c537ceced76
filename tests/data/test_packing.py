"""Packing: nothing cropped, nothing twice, each piece a true slice of its document."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stemma.data.batches import IGNORED, Order, build_batch
from stemma.data.packing import plan_packing, plan_whole, read_plan, write_plan
from stemma.data.store import TokenStore

LENGTHS = st.lists(st.integers(2, 40), min_size=1, max_size=30)


def store_of(lengths):
    """A store whose every token is unique, so that any slice tells where it came from."""
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    tokens = np.arange(offsets[-1], dtype=np.uint32)
    about = {"sha256": "0"}
    return TokenStore(tokens, offsets, np.array(lengths), about)


@given(lengths=LENGTHS, context=st.integers(1, 50))
def test_every_pair_is_trained_exactly_once_an_epoch(lengths, context):
    store = store_of(lengths)
    plan = plan_packing(store.offsets, context)
    batch = build_batch(store, plan, np.arange(plan.num_samples))
    real = batch.targets_BT != IGNORED
    pairs = set(zip(batch.tokens_BT[real], batch.targets_BT[real], strict=True))
    inside = [(i, i + 1) for i in range(sum(lengths) - 1) if i + 1 not in store.offsets]
    assert pairs == set(inside) and batch.counted == len(inside) == plan.num_pairs
    assert plan.num_padded == (~real).sum() < context


@given(lengths=LENGTHS, context=st.integers(1, 50))
def test_positions_restart_and_documents_change_with_each_piece(lengths, context):
    store = store_of(lengths)
    plan = plan_packing(store.offsets, context)
    batch = build_batch(store, plan, np.arange(plan.num_samples))
    if batch.positions_BT is None:
        assert (np.diff(plan.first_piece) == 1).all()
        return
    real = batch.targets_BT != IGNORED
    follows = np.diff(batch.tokens_BT, axis=1) == 1
    same = np.diff(batch.documents_BT, axis=1) == 0
    both = real[:, 1:] & real[:, :-1]
    # a piece is where tokens follow each other; elsewhere the position goes back to 0
    assert (same[both] <= follows[both]).all()
    assert (batch.positions_BT[:, 1:][both & ~same] == 0).all()
    assert (np.diff(batch.positions_BT, axis=1)[both & same] == 1).all()
    assert (batch.documents_BT[~real] == -1).all()


def test_one_long_document_needs_no_masks():
    batch = build_batch(store_of([41]), plan_packing(np.array([0, 41]), 8), np.arange(5))
    assert batch.positions_BT is None and batch.documents_BT is None


def test_plan_survives_the_disk(tmp_path):
    plan = plan_packing(np.array([0, 5, 9, 30]), 8)
    write_plan(tmp_path / "plan.safetensors", plan)
    again = read_plan(tmp_path / "plan.safetensors")
    assert again.context == plan.context
    for name in ("document", "start", "length", "first_piece"):
        np.testing.assert_array_equal(getattr(again, name), getattr(plan, name))


@given(rows=st.integers(1, 7))
def test_micro_batches_are_the_batch(rows):
    store = store_of([12, 9, 30, 5])
    plan = plan_packing(store.offsets, 8)
    batch = build_batch(store, plan, np.arange(plan.num_samples))
    parts = list(batch.split(rows))
    np.testing.assert_array_equal(np.concatenate([p.tokens_BT for p in parts]), batch.tokens_BT)
    assert sum(p.counted for p in parts) == batch.counted
    assert all(len(p.tokens_BT) <= rows for p in parts)


def test_batches_are_a_pure_function_of_the_step():
    plan = plan_packing(np.array([0, 100, 150]), 8)
    order = Order(plan, seed=3, batch_size=4)
    seen = np.concatenate([order.samples(step) for step in range(5)])
    again = np.concatenate([order.samples(step) for step in reversed(range(5))][::-1])
    np.testing.assert_array_equal(seen, again)
    assert len(set(seen[: plan.num_samples])) == plan.num_samples


@given(lengths=LENGTHS, spare=st.integers(0, 30))
def test_whole_documents_are_each_in_one_sample_and_uncut(lengths, spare):
    store = store_of(lengths)
    context = max(lengths) - 1 + spare
    plan = plan_whole(store.offsets, context)
    assert sorted(plan.document) == list(range(len(lengths)))
    assert (plan.start == 0).all()
    assert (plan.length == np.diff(store.offsets)[plan.document] - 1).all()
    filled = np.add.reduceat(plan.length, plan.first_piece[:-1])
    assert filled.max() <= context and plan.first_piece[-1] == len(lengths)


@given(lengths=LENGTHS)
def test_no_two_samples_of_whole_documents_would_fit_into_one(lengths):
    store = store_of(lengths)
    plan = plan_whole(store.offsets, max(lengths) - 1)
    filled = sorted(np.add.reduceat(plan.length, plan.first_piece[:-1]))
    assert len(filled) == 1 or filled[0] + filled[1] > plan.context


def test_document_longer_than_a_sample_is_refused():
    with pytest.raises(ValueError, match="9 pairs does not fit 8"):
        plan_whole(np.array([0, 10]), 8)
