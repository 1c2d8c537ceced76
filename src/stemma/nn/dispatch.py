"""Dispatch: tokens to their experts and back, with or without a limit to an expert's load.

Tokens are sorted by expert, so each expert multiplies one contiguous slice, whatever the load
(arXiv:2211.15841 does the same with one block-sparse product): nothing is padded, nothing dropped.

A capacity is the older way: each expert has so many places for the tokens of a group, here a row
of the batch. First choices of all tokens are placed before any second choice, earlier tokens
before later ones; who finds no place passes through the residual alone. That couples the tokens
of a row, later and packed ones included, which no dropless layer does.

Axes: B batch, T time, E experts, K choices of a token, N all tokens, P pairs of a token and an
expert that it asks, A all choices of a row (K T of them), C model width
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.nn.router import Routing


class Capacity(Protocol):
    """How many choices of a group one expert takes at most."""

    def __call__(self, tokens_B: Tensor, *, choices: int, num_experts: int) -> Tensor:
        """Places (B,) for groups of so many real tokens (B,)."""


@dataclass(frozen=True)
class Share:
    """An even share of all choices times a factor, rounded up: arXiv:2101.03961, equation 3.

    GShard's 2 N / E (arXiv:2006.16668, section 2.2) is a factor of 1 with two choices.
    """

    factor: float

    def __post_init__(self) -> None:
        if self.factor <= 0:
            raise ValueError(f"a capacity factor of {self.factor} leaves no place; above 0")

    def __call__(self, tokens_B: Tensor, *, choices: int, num_experts: int) -> Tensor:
        return (tokens_B.double() * choices * self.factor / num_experts).ceil().long()


@dataclass(frozen=True)
class Slots:
    """The same number of places for a group of any length."""

    number: int

    def __post_init__(self) -> None:
        if self.number < 1:
            raise ValueError(f"{self.number} slots leave no place; at least 1")

    def __call__(self, tokens_B: Tensor, *, choices: int, num_experts: int) -> Tensor:
        return torch.full_like(tokens_B, self.number)


def admit(routing: Routing, places_B: Tensor, num_experts: int) -> Routing:
    """Set to zero the weights of choices that find no place at their expert."""
    # choice by choice, then token by token: the order in which places are taken
    experts_BA = routing.experts_BTK.transpose(1, 2).flatten(1)
    asked_BA = (routing.weights_BTK > 0).transpose(1, 2).flatten(1)
    taken_BAE = F.one_hot(experts_BA, num_experts) * asked_BA[..., None]
    place_BA = (taken_BAE.cumsum(1) * taken_BAE).sum(-1)
    admitted_BA = place_BA <= places_B[:, None]
    choices = routing.experts_BTK.shape[-1]
    admitted_BTK = torch.unflatten(admitted_BA, 1, (choices, -1)).transpose(1, 2)
    return Routing(routing.experts_BTK, routing.weights_BTK * admitted_BTK)


def dispatch(
    x_BTC: Tensor,
    routing: Routing,
    num_experts: int,
    experts: Callable[[Tensor, Sequence[int]], Tensor],
) -> Tensor:
    """The weighted sum of the asked experts' answers; zero for a token that asks none.

    `experts` gets the tokens sorted by expert (P, C) and how many each expert has. The sum is
    taken in the weights' precision.
    """
    x_NC = x_BTC.flatten(0, 1)
    experts_NK, weights_NK = (part.flatten(0, 1) for part in routing)
    token_P, choice_P = (weights_NK > 0).nonzero(as_tuple=True)
    order_P = experts_NK[token_P, choice_P].argsort(stable=True)
    token_P, choice_P = token_P[order_P], choice_P[order_P]
    sizes = torch.bincount(experts_NK[token_P, choice_P], minlength=num_experts).tolist()
    answers_PC = experts(x_NC[token_P], sizes) * weights_NK[token_P, choice_P, None]
    # every choice has a row of its own, so nothing is added in an order that may change
    answers_NKC = answers_PC.new_zeros(*weights_NK.shape, x_NC.shape[-1])
    answers_NKC = answers_NKC.index_put((token_P, choice_P), answers_PC)
    return answers_NKC.sum(1).view_as(x_BTC).to(x_BTC.dtype)
