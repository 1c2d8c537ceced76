"""Sampling: every filter equals Hugging Face's, and draws follow the distribution."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from stemma.infer.sampling import (
    Sampling,
    distribution,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise,
    temper,
    uniform,
)

LOGITS = torch.randn(32, 101, generator=torch.Generator().manual_seed(3)).double() * 3


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 17, 100, 101, 5000])
def test_top_k_equals_the_reference(count):
    same(keep_top_k(LOGITS, count), TopKLogitsWarper(count)(None, LOGITS))


@pytest.mark.parametrize("share", [1e-9, 0.1, 0.5, 0.95, 0.999])
def test_top_p_equals_the_reference(share):
    same(keep_top_p(LOGITS, share), TopPLogitsWarper(share)(None, LOGITS))


@pytest.mark.parametrize("share", [1e-9, 0.05, 0.3, 0.99])
def test_min_p_equals_the_reference(share):
    same(keep_min_p(LOGITS, share), MinPLogitsWarper(share)(None, LOGITS))


@pytest.mark.parametrize("temperature", [0.1, 0.8, 1.0, 3.0])
def test_temperature_equals_the_reference(temperature):
    theirs = TemperatureLogitsWarper(temperature)(None, LOGITS)
    same(temper(LOGITS, temperature).softmax(-1), theirs.softmax(-1))


@pytest.mark.parametrize("penalty", [0.7, 1.0, 1.3])
def test_repetition_penalty_equals_the_reference(penalty):
    ids = torch.randint(0, 101, (32, 9))
    seen = torch.zeros(32, 101, dtype=torch.bool).scatter(1, ids, True)
    same(penalise(LOGITS, seen, penalty), RepetitionPenaltyLogitsProcessor(penalty)(ids, LOGITS))


def test_the_whole_chain_equals_the_references_in_their_order():
    theirs = LOGITS
    for warper in (
        TemperatureLogitsWarper(1.7),
        TopKLogitsWarper(40),
        TopPLogitsWarper(0.8),
        MinPLogitsWarper(0.1),
    ):
        theirs = warper(None, theirs)
    sampling = Sampling(temperature=1.7, top_k=40, top_p=0.8, min_p=0.1)
    same(distribution(LOGITS, sampling), theirs.softmax(-1))


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999999])
@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 4.0])
def test_the_nucleus_of_large_vocabularies_equals_the_reference(spread, share):
    """From one token to nearly all of 2,000; rows of one batch need different numbers of them."""
    logits = torch.randn(4, 2000, generator=torch.Generator().manual_seed(1)).double()
    logits = logits * torch.tensor([[spread], [1.0], [2.0], [8.0]]) + torch.arange(2000) * 1e-9
    same(keep_top_p(logits, share), TopPLogitsWarper(share)(None, logits))
    for row in range(4):
        alone = keep_top_p(logits[row : row + 1], share)
        torch.testing.assert_close(keep_top_p(logits, share)[row : row + 1], alone, rtol=0, atol=0)


def test_equals_at_the_border_of_a_filter_stay_together():
    """Else the order of a sort would choose between them, and batch mates could change it."""
    logits = torch.tensor([[1.0, 1.0, 3.0, 1.0, 0.0]]).double()
    for kept in (keep_top_p(logits, 0.75), keep_top_k(logits, 2)):
        assert kept.isfinite().tolist() == [[True, True, True, True, False]]


def test_no_filter_is_the_plain_softmax():
    same(distribution(LOGITS, Sampling(temperature=1.0, top_p=1.0)), LOGITS.softmax(-1))


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e300])
def test_extreme_temperatures_stay_numbers(temperature):
    chances = distribution(LOGITS, Sampling(temperature=temperature, top_p=1.0))
    same(chances.sum(-1), torch.ones(32).double())
    if temperature < 1:
        same(chances.argmax(-1), LOGITS.argmax(-1))
        same(chances.amax(-1), torch.ones(32).double())


def test_nucleus_is_the_fewest_tokens_that_hold_the_share():
    """By its definition: the kept mass reaches the share, without its smallest token not."""
    for chances, kept in zip(LOGITS.softmax(-1), keep_top_p(LOGITS, 0.7).isfinite(), strict=True):
        assert chances[kept].sum() >= 0.7 > chances[kept].sum() - chances[kept].min()
        assert chances[kept].min() > chances[~kept].max()


def test_draws_follow_the_distribution():
    """Pearson's chi-square, 7 degrees of freedom: above 29.9 once in 10,000 seeds."""
    chances = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.05, 0.03, 0.015, 0.005], dtype=torch.float64)
    count = 20_000
    noise = torch.tensor([uniform(5, n) for n in range(count)], dtype=torch.float64)
    drawn = draw(chances.expand(count, -1), noise).bincount(minlength=8)
    expected = chances * count
    assert ((drawn - expected) ** 2 / expected).sum() < 29.9


def test_noise_of_neighbouring_seeds_and_positions_is_independent():
    grid = torch.tensor([[uniform(seed, at) for at in range(64)] for seed in range(64)])
    assert abs(grid.mean() - 0.5) < 0.02
    assert abs(grid.var() - 1 / 12) < 0.01
    for shifted in (grid.roll(1, 0), grid.roll(1, 1)):
        assert abs(torch.corrcoef(torch.stack((grid.flatten(), shifted.flatten())))[0, 1]) < 0.05


def test_noise_never_changes_between_releases():
    """A seed is printed so that its text can be made again: these numbers are a promise."""
    assert [round(uniform(0, at), 6) for at in range(3)] == [0.564044, 0.956838, 0.312266]


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 1e-12, 0.1, 3.0]), min_size=1, max_size=9), st.floats(0, 1))
def test_impossible_tokens_are_never_drawn(weights, noise):
    if sum(weights) == 0 or noise == 1:
        return
    weights = torch.tensor([weights], dtype=torch.float64)
    drawn = draw(weights / weights.sum(), torch.tensor([noise], dtype=torch.float64))
    assert weights[0, drawn.item()] > 0


@pytest.mark.parametrize("noise", [0.0, math.nextafter(1, 0)])
def test_the_ends_of_the_noise_draw_possible_tokens(noise):
    chances = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]], dtype=torch.float64)
    drawn = draw(chances, torch.tensor([noise], dtype=torch.float64))
    assert drawn.item() == (1 if noise == 0 else 3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"min_p": 1.0},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": math.inf},
        {"stop": ("",)},
        {"stop": ("x" * 257,)},
        {"stop": ("x",) * 17},
        {"stop": "END"},
        {"seed": -1},
        {"seed": 2**63},
        {"logprobs": 21},
        {"logprobs": -1},
        {"max_new_tokens": 0},
        {"max_new_tokens": "5"},
        {"temprature": 1.0},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(wrong):
    (key,) = wrong
    with pytest.raises(ValidationError, match=key):
        Sampling(**wrong)


def test_the_edges_of_the_settings_are_allowed():
    Sampling(temperature=0, top_p=1, min_p=0, seed=2**63 - 1, logprobs=20, stop=("x" * 256,) * 16)
    assert Sampling(stop=["a", "b"]).stop == ("a", "b")
    assert all(field.description for field in Sampling.model_fields.values())
