"""How well texts are labelled: accuracy and its interval, the confusion matrix, the majority's bar.

Axes: L labels; rows of the matrix are the right labels, columns those that were given
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stemma.core.errors import DataError
from stemma.eval.answers import share_interval
from stemma.eval.statistics import Interval
from stemma.nn.mode import evaluating

Labelled = TypeVar("Labelled")


@dataclass(frozen=True)
class Labelling:
    """Labels that were given, beside the right ones. `loss` is in nats for each text.

    `majority` is how many a guesser has right who always says the commonest label of training.
    """

    loss: float
    matrix_LL: NDArray[np.int64]
    given_N: NDArray[np.int64]
    majority: int

    @property
    def texts(self) -> int:
        """How many texts were labelled."""
        return int(self.matrix_LL.sum())

    @property
    def right(self) -> int:
        """How many got the right label."""
        return int(np.trace(self.matrix_LL))

    @property
    def accuracy(self) -> float:
        """The share that got the right label."""
        return self.right / self.texts

    @property
    def interval(self) -> Interval:
        """The interval of the accuracy, 95 %."""
        return share_interval(self.right, self.texts)


def confusion(right_N: Iterable[int], given_N: Iterable[int], count: int) -> NDArray[np.int64]:
    """How often each of `count` labels was given for each.

    >>> confusion([0, 1, 1], [0, 1, 0], 2)
    array([[1, 0],
           [1, 1]])
    """
    matrix_LL = np.zeros((count, count), dtype=np.int64)
    np.add.at(matrix_LL, (np.array([*right_N], int), np.array([*given_N], int)), 1)
    return matrix_LL


@torch.inference_mode()
def labelling(
    model: Any,
    batches: Iterable[Labelled],
    scores: Callable[[Any, Labelled], tuple[Tensor, Tensor]],
    train_counts_L: Sequence[int],
) -> Labelling:
    """Score a model on batches of labelled texts.

    `scores` gives those of every label for each text (N, L) and the right label (N,). Raises
    DataError where there is no text.
    """
    losses: list[float] = []
    right: list[int] = []
    given: list[int] = []
    with evaluating(list(model.modules())):
        for batch in batches:
            scores_NL, right_N = scores(model, batch)
            losses.append(F.cross_entropy(scores_NL, right_N, reduction="sum").item())
            right += right_N.tolist()
            given += scores_NL.argmax(-1).tolist()
    if not right:
        raise DataError("no held-out text to label", fix="hold out more examples")
    commonest = int(np.argmax(train_counts_L))
    matrix_LL = confusion(right, given, len(train_counts_L))
    majority = int(matrix_LL[commonest].sum())
    return Labelling(math.fsum(losses) / len(right), matrix_LL, np.array(given), majority)
