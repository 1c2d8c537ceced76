"""The loss of a translation against a sum by hand, pair by pair."""

import numpy as np
import pytest
import torch

from stemma.data.bundles import PairStore, build_bundle, plan_bundles
from stemma.data.store import Row, in_memory
from stemma.models import transformer
from stemma.nn.initial import initialise
from stemma.train.loop import accumulate
from stemma.train.translate import translation_loss

VOCAB = 11
PAIRS = [([3, 4, 5, 1], [0, 7, 1]), ([9, 1], [0, 2, 2, 8, 1]), ([4, 4, 1], [0, 6, 5, 1])]


@pytest.fixture(scope="module")
def model():
    config = transformer.TransformerConfig(
        width=12, depth=1, num_heads=2, vocab_size=VOCAB, dropout=0.0
    )
    network = transformer.build(config)
    initialise(network, seed=1, std=0.4, depth=1)
    return network.double()


def bundles(context):
    sides = [
        in_memory(Row(ids, 1, [True] * len(ids)) for ids in side)
        for side in zip(*PAIRS, strict=True)
    ]
    store = PairStore(*sides)
    lengths = [np.array([len(pair[side]) for pair in PAIRS]) for side in (0, 1)]
    plan = plan_bundles(lengths[0], lengths[1] - 1, context=context, seed=0)
    return [build_bundle(store, plan, sample) for sample in range(plan.num_samples)]


def by_hand(model, smoothing):
    """-(1 - e) log p(target) - e / V * sum of all log p, arXiv:1512.00567, section 7."""
    total = 0.0
    for source, target in PAIRS:
        logits = model(torch.tensor([source]), torch.tensor([target[:-1]]))[0]
        log_TV = logits.log_softmax(-1)
        for t, token in enumerate(target[1:]):
            total -= (1 - smoothing) * log_TV[t, token].item()
            total -= smoothing * log_TV[t].mean().item()
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("context", [4, 8, 64])
@torch.no_grad()
def test_loss_is_the_sum_over_target_tokens_however_pairs_are_bundled(model, context, smoothing):
    loss_sum, found = translation_loss(smoothing), bundles(context)
    total = sum(loss_sum(model, batch).item() for batch in found)
    assert sum(batch.counted for batch in found) == 9
    assert total == pytest.approx(by_hand(model, smoothing), rel=1e-6)


def test_gradient_does_not_depend_on_the_bundles(model):
    gradients = []
    for context in (4, 8, 64):
        model.zero_grad()
        loss, counted = accumulate(model, bundles(context), translation_loss(0.1))
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
        assert counted == 9 and loss > 0
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-6, atol=1e-9)
