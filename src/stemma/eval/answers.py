"""How a chat model answers: the loss of held-out answers, and whether its own answers end.

A model that was never taught to end a turn talks on until it is cut. So beside the loss there is
the share of held-out first turns that it answers and closes by its end-of-turn within a limit.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stemma.core.errors import DataError
from stemma.eval.statistics import Interval
from stemma.infer.generate import Generation
from stemma.nn.mode import evaluating


@dataclass(frozen=True)
class AnswerLoss:
    """Nats for each token of the assistant's held-out turns, their end-of-turn included."""

    loss: float
    tokens: int


@torch.inference_mode()
def answer_loss(
    model: Any, batches: Iterable[Any], loss_sum: Callable[[nn.Module, Any], Tensor]
) -> AnswerLoss:
    """The mean over all counted tokens of all batches. Raises DataError where none counts."""
    total, tokens = 0.0, 0
    with evaluating(list(model.modules())):
        for batch in batches:
            total += loss_sum(model, batch).item()
            tokens += batch.counted
    if not tokens:
        raise DataError("no held-out answer to score", fix="hold out more conversations")
    return AnswerLoss(total / tokens, tokens)


def stopped(answers: Sequence[Generation]) -> int:
    """How many answers ended by themselves, not at the limit."""
    return sum(answer.finish_reason == "stop" for answer in answers)


def share_interval(count: int, total: int, *, deviations: float = 1.96) -> Interval:
    """The interval of a share (Wilson, 1927, JASA 22, page 209): sensible also at none and at all.

    1.96 standard deviations hold 95 %.

    >>> share = share_interval(100, 100)
    >>> round(share.low, 3), share.high
    (0.963, 1.0)
    """
    if not 0 <= count <= total or total < 1:
        raise ValueError(f"{count} of {total} is no share")
    square = deviations**2
    middle = (count + square / 2) / (total + square)
    spread = math.sqrt(count * (total - count) / total + square / 4) * deviations / (total + square)
    return Interval(max(0.0, middle - spread), min(1.0, middle + spread), 0.95)
