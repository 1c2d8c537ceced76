"""Encoder-decoders against their oracles, and against themselves: cached, ragged, padded, alone.

The oracles are in `oracles_encdec`; what is measured is in `parity_encdec.py`.
"""

import pytest
import torch

import stemma
from tests.models.parity_encdec import (
    CHUNKS,
    GRADIENTS,
    LIMIT,
    SIDES,
    cached_error,
    cases_of,
    gradient_errors,
    logits_error,
    padded_error,
    pair_of,
    ragged_error,
    round_trip_error,
)

CASES = cases_of("transformer", "t5", "switch")


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(" ", "-"))
def pair(request):
    return pair_of(request.param)


def test_logits_equal_the_oracle(pair):
    assert logits_error(pair) <= LIMIT


def test_gradients_equal_the_oracle(pair):
    for name, error in gradient_errors(pair).items():
        assert error <= GRADIENTS, name


@pytest.mark.parametrize("side", SIDES)
def test_padded_batch_equals_the_oracle_on_each_row_alone(pair, side):
    assert padded_error(pair, side) <= LIMIT


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_cached_pass_equals_full_pass(pair, chunks):
    assert cached_error(pair, chunks) <= LIMIT


@pytest.mark.parametrize("side", SIDES)
def test_ragged_cached_pass_equals_each_row_alone(pair, side):
    assert ragged_error(pair, side) <= LIMIT


def test_our_folder_opens_in_the_oracle_with_equal_tensors(pair, tmp_path):
    gradient_errors(pair)  # which tensors the oracle uses is seen by their gradients
    assert round_trip_error(pair, tmp_path / "ours") <= 1e-6


@torch.no_grad()
def test_our_folder_loads_again_as_it_was(pair, tmp_path):
    stemma.save(pair.ours, None, tmp_path / "ours")
    again = stemma.load(tmp_path / "ours")[0]
    assert again.config == pair.config
    for name, value in pair.ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
