"""Families that no other library has: against layers of torch, against equations, and themselves.

What is measured is in `parity_own.py`, which docs/parity.md is written by too.
"""

from dataclasses import replace

import pytest
import torch

from tests.models.parity_own import (
    CASES,
    LIMIT,
    SINGLE,
    gradient_errors,
    laws,
    logits_error,
    pair_of,
    round_trip_error,
)

SIDES = ("left", "right")


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request):
    """A pair, and how near it must be to its oracle."""
    single = "fp32" in pair_of(request.param).theirs.named
    return pair_of(request.param), SINGLE if single else LIMIT


def test_logits_equal_the_oracle(case):
    pair, limit = case
    assert logits_error(pair) <= limit


def test_gradients_equal_the_oracle(case):
    pair, limit = case
    for name, error in gradient_errors(pair).items():
        assert error <= limit, name


@pytest.mark.parametrize("side", SIDES)
def test_padded_batch_equals_the_oracle_on_rows_alone(case, side):
    pair, limit = case
    assert laws(pair).padded_error(pair, side) <= limit


def test_cached_pass_equals_full_pass(case):
    pair, _ = case
    for chunks in laws(pair).CHUNKS:
        assert laws(pair).cached_error(pair, chunks) <= LIMIT, chunks


@pytest.mark.parametrize("side", SIDES)
def test_ragged_cached_pass_equals_each_row_alone(case, side):
    pair, _ = case
    assert laws(pair).ragged_error(pair, side) <= LIMIT


def test_our_folder_comes_back_as_it_was(case, tmp_path):
    pair, _ = case
    assert round_trip_error(pair, tmp_path / "ours") == 0


@pytest.mark.parametrize("name", ["lstm", "seq2seq lstm, reversed", "decoder dual", "delta"])
@torch.no_grad()
def test_the_oracle_knows_a_wrong_number(name):
    """One weight changed on one side alone is seen."""
    pair = pair_of(name)
    parameter = next(p for p in pair.ours.parameters() if p.ndim == 2)
    once = pair.theirs.expected

    def after_a_change(*given):
        parameter[1, 1] += 0.1
        found = once(*given)
        parameter[1, 1] -= 0.1
        return found

    wrong = replace(pair, theirs=replace(pair.theirs, expected=after_a_change))
    assert logits_error(wrong) > LIMIT
