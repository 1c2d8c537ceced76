"""Routers: frozen values that choose the experts of a token from its scores.

A router answers with the chosen experts of every token, best first, and the number by which the
answer of each counts. Choosing itself has no gradient; the weights carry it, so a router learns
through them alone. Each token is routed by its own scores: what others do is a matter of capacity
(`stemma.nn.dispatch`). Scores are fp32 at least, also in a half-precision model: a rounding error
in them would change which expert runs (arXiv:2101.03961, section 2.4, "selective precision").

Axes: B batch, T time, E experts, K choices of a token
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Routing(NamedTuple):
    """Which experts each token asks, and how much their answers count.

    `experts_BTK` are int64 and differ within a token; a weight of zero means that the expert is
    not asked.
    """

    experts_BTK: Tensor
    weights_BTK: Tensor


class Router(Protocol):
    """What the routers have in common; `choices` is K, the experts that a token asks at most."""

    @property
    def choices(self) -> int: ...

    def __call__(self, scores_BTE: Tensor, *, training: bool) -> Routing:
        """Choose for every token."""


@dataclass(frozen=True)
class TopK:
    """The k best experts, weighted by the softmax of their scores alone, arXiv:2401.04088, sec 2.1.

    The weights of a token sum to one. With k = 1 the one weight is always 1: no gradient reaches
    the router but that of the balance loss.
    """

    k: int

    def __post_init__(self) -> None:
        check_choices(self.k)

    @property
    def choices(self) -> int:
        return self.k

    def __call__(self, scores_BTE: Tensor, *, training: bool) -> Routing:
        best_BTK, experts_BTK = scores_BTE.topk(self.k, dim=-1)
        return Routing(experts_BTK, best_BTK.softmax(-1))


@dataclass(frozen=True)
class SoftmaxTopK:
    """The k best experts, weighted by their share of the softmax over all experts.

    With k = 1 this is Switch, arXiv:2101.03961, equations 1 and 2.
    """

    k: int

    def __post_init__(self) -> None:
        check_choices(self.k)

    @property
    def choices(self) -> int:
        return self.k

    def __call__(self, scores_BTE: Tensor, *, training: bool) -> Routing:
        weights_BTK, experts_BTK = scores_BTE.softmax(-1).topk(self.k, dim=-1)
        return Routing(experts_BTK, weights_BTK)


@dataclass(frozen=True)
class RandomSecond:
    """The best expert always, the second with twice its weight as the chance: GShard.

    arXiv:2006.16668, algorithm 1. Both weights are normalised before the draw, as there; a
    declined second takes no place at its expert, as in the published implementations. The draw is
    made in training alone, from torch's own stream, which training seeds by the step as for
    dropout. In evaluation the second is always asked (`TopK(2)`).
    """

    @property
    def choices(self) -> int:
        return 2

    def __call__(self, scores_BTE: Tensor, *, training: bool) -> Routing:
        experts_BTK, weights_BTK = TopK(2)(scores_BTE, training=training)
        if not training:
            return Routing(experts_BTK, weights_BTK)
        first_BT, second_BT = weights_BTK.unbind(-1)
        asked_BT = torch.rand_like(second_BT) < 2 * second_BT
        return Routing(experts_BTK, torch.stack((first_BT, second_BT * asked_BT), dim=-1))


def check_choices(k: int) -> None:
    """Raise ValueError where a token would ask nobody."""
    if k < 1:
        raise ValueError(f"a token asks k ({k}) experts; at least 1")
