"""Every family against its oracle, and against itself: cached, ragged, padded, alone.

The oracles are in `oracles`, one file a family; what is measured is in `parity.py`, which also
writes docs/parity.md. The papers' equations have tests of their own.
"""

import pytest
import torch
import transformers

import stemma
from tests.models.parity import (
    CHUNKS,
    LIMIT,
    cached_error,
    cases,
    draw_tokens,
    gradient_errors,
    logits_error,
    padded_error,
    pair_of,
    ragged_error,
    round_trip_error,
    scatter,
    single_error,
)


@pytest.fixture(scope="module", params=cases(), ids=lambda name: name.replace(" ", "-"))
def pair(request):
    return pair_of(request.param)


def test_logits_equal_the_oracle(pair):
    assert logits_error(pair) <= LIMIT


def test_gradients_equal_the_oracle(pair):
    for name, error in gradient_errors(pair).items():
        assert error <= LIMIT, name


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch_equals_the_oracle(pair, side):
    assert padded_error(pair, side) <= LIMIT


def test_a_row_alone_equals_the_batch(pair):
    assert single_error(pair) <= LIMIT


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_cached_pass_equals_full_pass(pair, chunks):
    assert cached_error(pair, chunks) <= LIMIT


@pytest.mark.parametrize("side", ["left", "right"])
def test_ragged_cached_pass_equals_each_row_alone(pair, side):
    assert ragged_error(pair, side) <= LIMIT


def test_our_folder_opens_in_the_oracle_with_equal_tensors(pair, tmp_path):
    assert round_trip_error(pair, tmp_path / "ours") == 0


@pytest.mark.parametrize("case", ["llama grouped", "gpt2"])
@torch.no_grad()
def test_our_folder_opens_by_itself(case, tmp_path):
    """transformers finds the class by the folder alone."""
    pair = pair_of(case)
    stemma.save(pair.ours, None, tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(again) is type(pair.theirs)
    tokens_BT = draw_tokens(pair)
    torch.testing.assert_close(again(tokens_BT).logits, pair.theirs(tokens_BT).logits)


@torch.no_grad()
def test_sharded_folder_loads_like_one_file(pair, tmp_path):
    pair.theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    sharded = stemma.load(tmp_path)[0].state_dict()
    for name, value in pair.ours.state_dict().items():
        assert torch.equal(sharded[name], value), name


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", ["gpt2", "llama grouped"])
@torch.no_grad()
def test_half_precision_folder_loads_its_exact_values(case, half, tmp_path):
    scatter(cases()[case]()).to(getattr(torch, half)).save_pretrained(tmp_path)
    exact = stemma.load(tmp_path)[0].state_dict()
    kept = stemma.load(tmp_path, dtype=half)[0].state_dict()
    for name, value in exact.items():
        assert value.dtype == torch.float32 and kept[name].dtype == getattr(torch, half)
        assert torch.equal(kept[name].float(), value), name
