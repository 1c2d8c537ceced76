"""The loss of answers is the mean over their tokens; a share comes with an interval that fits."""

import numpy as np
import pytest
import torch

from stemma.core.errors import DataError
from stemma.data.batches import IGNORED, Batch
from stemma.eval.answers import answer_loss, share_interval, stopped
from stemma.infer.generate import Generation


def batch_of(targets):
    rows = np.array(targets)
    return Batch(np.zeros_like(rows), rows, None, None, np.arange(len(rows)))


def test_loss_is_the_mean_over_counted_tokens_of_all_batches():
    model = torch.nn.Linear(1, 1).train()
    sums = iter([6.0, 1.0])
    seen = []

    def loss_sum(network, batch):
        seen.append(network.training)
        return torch.tensor(next(sums))

    batches = [batch_of([[1, 2, IGNORED]]), batch_of([[IGNORED, IGNORED, 4]])]
    found = answer_loss(model, batches, loss_sum)
    assert found.loss == pytest.approx(7 / 3) and found.tokens == 3
    assert seen == [False, False] and model.training


def test_nothing_to_score_is_an_error():
    with pytest.raises(DataError, match="no held-out answer"):
        answer_loss(torch.nn.Linear(1, 1), [], lambda model, batch: torch.zeros(()))


def test_answers_that_end_are_counted():
    made = [Generation("", [1], reason, 1, 1, 0, None) for reason in ("stop", "length", "stop")]
    assert stopped(made) == 2


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    # the worked figures follow from the quadratic (p - share)^2 = 1.96^2 p (1 - p) / total
    [(100, 100, 0.9630, 1.0), (0, 10, 0.0, 0.2775), (95, 100, 0.8882, 0.9785)],
)
def test_interval_solves_its_quadratic(count, total, low, high):
    found = share_interval(count, total)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    for bound in (found.low, found.high):
        left, right = (bound - count / total) ** 2, 1.96**2 * bound * (1 - bound) / total
        assert left == pytest.approx(right, abs=1e-9)


def test_no_share_of_nothing():
    with pytest.raises(ValueError, match="0 of 0"):
        share_interval(0, 0)
