"""Hidden tokens: what a score is, and what guessing by frequency reaches."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from stemma.core.errors import DataError
from stemma.eval.foretold import foretelling, unigram

COUNTS = np.array([0, 5, 0, 3, 2])
ORDINARY = np.array([False, True, True, True, True])


class Guesser(nn.Module):
    """A network that is in training when it is scored, and must be so afterwards."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)


def known(model, batch):
    """Scores that are handed in; the mode is looked at."""
    assert not model.training and not model.dropout.training
    return batch


def test_loss_and_accuracy_are_over_all_chosen_tokens_of_all_batches():
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(7, 5, generator=draw, dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    model = Guesser()
    found = foretelling(model, [(scores[:2], targets[:2]), (scores[2:], targets[2:])], known)
    wanted = 0.0
    for row, target in zip(scores.tolist(), targets.tolist(), strict=True):
        wanted += math.log(sum(map(math.exp, row))) - row[target]
    right = sum(row.index(max(row)) == t for row, t in zip(scores.tolist(), targets, strict=True))
    assert abs(found.loss - wanted / 7) < 1e-12
    assert (found.right, found.tokens, found.accuracy) == (right, 7, right / 7)
    assert found.interval.low < found.accuracy < found.interval.high
    assert model.training


def test_frequency_guesses_by_the_counts_of_the_training_text():
    targets = np.array([1, 3, 4, 2, 1])
    found = unigram(COUNTS, ORDINARY, targets)
    shares = {1: 6 / 14, 2: 1 / 14, 3: 4 / 14, 4: 3 / 14}
    assert abs(found.loss + np.mean([math.log(shares[t]) for t in targets.tolist()])) < 1e-12
    assert (found.right, found.tokens) == (2, 5)


def test_marks_are_never_the_guess():
    found = unigram(np.array([99, 5, 0, 3, 2]), ORDINARY, np.array([1]))
    assert found.right == 1 and abs(found.loss - math.log(14 / 6)) < 1e-12


def test_no_network_can_beat_frequency_on_tokens_without_order():
    draw = np.random.default_rng(0)
    text = draw.choice(np.arange(1, 5), 20_000, p=[0.4, 0.3, 0.2, 0.1])
    counts = np.bincount(text, minlength=5)
    found = unigram(counts, ORDINARY, draw.choice(np.arange(1, 5), 20_000, p=[0.4, 0.3, 0.2, 0.1]))
    entropy = -sum(p * math.log(p) for p in (0.4, 0.3, 0.2, 0.1))
    assert abs(found.loss - entropy) < 0.02 and abs(found.accuracy - 0.4) < 0.02


def test_nothing_hidden_is_refused():
    with pytest.raises(DataError, match="no held-out token is masked"):
        foretelling(Guesser(), [], known)
    with pytest.raises(DataError, match="no held-out token is masked"):
        unigram(COUNTS, ORDINARY, np.array([], dtype=int))
