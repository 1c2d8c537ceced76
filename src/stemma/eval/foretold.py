"""How well hidden tokens are foretold, beside the simplest guess: what is frequent anyway.

The masks are fixed by the caller, so that every score is of the same tokens. The unigram model
knows how often each token stands in the training text, with one more for each so that none is
impossible; its loss is what a network has to get below before it has looked at any neighbour.

Axes: N chosen tokens, V vocabulary
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stemma.core.errors import DataError
from stemma.data.batches import Batch
from stemma.eval.answers import share_interval
from stemma.eval.statistics import Interval
from stemma.nn.mode import evaluating

Foretell = Callable[[Any, Batch], tuple[Tensor, Tensor]]
"""Scores over the vocabulary (N, V) of every chosen token of a batch, and what each is (N,)."""


@dataclass(frozen=True)
class Foretelling:
    """Nats for each chosen token, and how many of them were the likeliest."""

    loss: float
    right: int
    tokens: int

    @property
    def accuracy(self) -> float:
        """The share of the chosen tokens that were the likeliest."""
        return self.right / self.tokens

    @property
    def interval(self) -> Interval:
        """The interval of the accuracy, 95 %."""
        return share_interval(self.right, self.tokens)


@torch.inference_mode()
def foretelling(model: Any, batches: Iterable[Batch], foretell: Foretell) -> Foretelling:
    """The score over all chosen tokens of all batches. Raises DataError where there is none."""
    losses, right, tokens = [], 0, 0
    with evaluating(list(model.modules())):
        for batch in batches:
            logits_NV, targets_N = foretell(model, batch)
            losses.append(F.cross_entropy(logits_NV, targets_N, reduction="sum").item())
            right += int((logits_NV.argmax(-1) == targets_N).sum())
            tokens += len(targets_N)
    if not tokens:
        raise DataError("no held-out token is masked", fix="hold out more text")
    return Foretelling(math.fsum(losses) / tokens, right, tokens)


def unigram(
    counts_V: NDArray[np.int64], ordinary_V: NDArray[np.bool_], targets_N: NDArray[np.int64]
) -> Foretelling:
    """The score of guessing by frequency: `counts_V` of the training text, over ordinary tokens.

    Raises DataError where there is no token to guess.
    """
    if not len(targets_N):
        raise DataError("no held-out token is masked", fix="hold out more text")
    smoothed_V = np.where(ordinary_V, counts_V + 1.0, 0.0)
    nats_N = math.log(smoothed_V.sum()) - np.log(smoothed_V[targets_N])
    right = int((targets_N == smoothed_V.argmax()).sum())
    return Foretelling(math.fsum(nats_N) / len(targets_N), right, len(targets_N))
