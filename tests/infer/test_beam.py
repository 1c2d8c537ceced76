"""Beam search against an exhaustive search, and what it must not depend on."""

import itertools
import math

import pytest
import torch

from stemma.core.errors import ModelError
from stemma.infer.beam import beam_search, length_penalty
from stemma.models import transformer
from stemma.nn.initial import initialise

VOCAB, START, END = 7, 0, 1


@pytest.fixture(scope="module", params=[1, 2])
def model(request):
    config = transformer.TransformerConfig(width=16, depth=1, num_heads=2, vocab_size=VOCAB)
    network = transformer.build(config)
    initialise(network, seed=request.param, std=0.5, depth=1)
    return network.double().eval()


@torch.no_grad()
def logprob(model, source, target):
    """The log probability of a target with its end, token by token, without a cache."""
    logits = model(torch.tensor([source]), torch.tensor([[START, *target]]))[0].log_softmax(-1)
    return sum(logits[t, token].item() for t, token in enumerate([*target, END]))


def every_target(longest):
    for length in range(longest):
        yield from itertools.product([t for t in range(VOCAB) if t != END], repeat=length)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.5])
def test_with_a_beam_for_every_path_it_finds_the_best_of_all_texts(model, alpha):
    source, longest = [3, 2, 5], 4
    scores = {
        target: logprob(model, source, target) / length_penalty(len(target) + 1, alpha)
        for target in every_target(longest)
    }
    best = max(scores, key=scores.get)
    found = beam_search(
        model,
        [source],
        start_id=START,
        end_id=END,
        max_new_tokens=longest,
        beams=(VOCAB - 1) ** (longest - 1),
        alpha=alpha,
    )[0]
    assert found.ended and tuple(found.token_ids) == best
    assert math.isclose(found.score, scores[best], rel_tol=1e-9)
    assert math.isclose(found.logprob, logprob(model, source, best), rel_tol=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 8.0])
@pytest.mark.parametrize("seed", [3, 8, 16, 25])  # of these some texts end early
@torch.no_grad()
def test_one_beam_takes_the_likeliest_token_each_time_whatever_the_penalty(seed, alpha):
    config = transformer.TransformerConfig(width=16, depth=1, num_heads=2, vocab_size=VOCAB)
    model = transformer.build(config)
    initialise(model, seed=seed, std=0.5, depth=1)
    model = model.double().eval()
    for source in ([2], [3, 2, 5], [6, 6, 4, 2, 3]):
        text = []
        while len(text) < 40:
            logits = model(torch.tensor([source]), torch.tensor([[START, *text]]))[0, -1]
            if logits.argmax().item() == END:
                break
            text.append(logits.argmax().item())
        settings = {"start_id": START, "end_id": END, "max_new_tokens": 40, "alpha": alpha}
        found = beam_search(model, [source], **settings)[0]
        assert found.token_ids == text and found.ended == (len(text) < 40)


@pytest.mark.parametrize("beams", [1, 3, 5])
def test_a_source_does_not_see_its_neighbours_in_the_batch(model, beams):
    sources = [[3, 2, 5], [2], [6, 6, 4, 2, 3, 3, 3], [5, 5]]
    settings = {"start_id": START, "end_id": END, "max_new_tokens": 12, "beams": beams}
    together = beam_search(model, sources, alpha=0.6, **settings)
    for source, found in zip(sources, together, strict=True):
        alone = beam_search(model, [source], alpha=0.6, **settings)[0]
        assert alone.token_ids == found.token_ids
        assert math.isclose(alone.score, found.score, rel_tol=1e-9)


def test_more_beams_never_find_less_where_length_is_free(model):
    """Without a penalty on length the score is the probability, and a wider beam keeps more."""
    sources = [[3, 2, 5], [2], [6, 6, 4, 2]]
    settings = {"start_id": START, "end_id": END, "max_new_tokens": 6}
    narrow = beam_search(model, sources, beams=1, **settings)
    wide = beam_search(model, sources, beams=216, **settings)
    for few, many in zip(narrow, wide, strict=True):
        assert not few.ended or many.logprob >= few.logprob - 1e-9


def test_a_penalty_on_length_prefers_longer_texts(model):
    settings = {"start_id": START, "end_id": END, "max_new_tokens": 6, "beams": 216}
    lengths = [
        len(beam_search(model, [[3, 2, 5]], alpha=alpha, **settings)[0].token_ids)
        for alpha in (0.0, 1.0, 8.0)
    ]
    assert lengths == sorted(lengths) and lengths[-1] > lengths[0]


def test_what_cannot_be_searched_is_refused(model):
    settings = {"start_id": START, "end_id": END, "max_new_tokens": 3}
    with pytest.raises(ValueError, match="0 beams find nothing"):
        beam_search(model, [[2]], beams=0, **settings)
    with pytest.raises(ValueError, match="without a token"):
        beam_search(model, [[2], []], **settings)
    assert beam_search(model, [], **settings) == []


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_refused_and_not_translated(beams, value):
    config = transformer.TransformerConfig(width=16, depth=1, num_heads=2, vocab_size=VOCAB)
    model = transformer.build(config)
    initialise(model, seed=0, std=0.5, depth=1)
    with torch.no_grad():
        model.embedding.weight[2] = value
    settings = {"start_id": START, "end_id": END, "max_new_tokens": 5, "beams": beams}
    with pytest.raises(ModelError, match="not finite numbers"):
        beam_search(model, [[2, 3]], **settings)


def test_the_model_is_left_as_it_was(model):
    model.train()
    beam_search(model, [[2]], start_id=START, end_id=END, max_new_tokens=3)
    assert model.training and all(module.training for module in model.modules())
    model.eval()
