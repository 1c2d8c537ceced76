"""Mixture of experts: a feed-forward layer of which every token uses a small part.

A router scores the experts for a token, the best few answer, and their answers are added with the
router's weights (arXiv:1701.06538, equation 1). So parameters grow with the number of experts and
the work for a token does not. Routers are values (`stemma.nn.router`), and so is the limit to an
expert's load (`stemma.nn.dispatch`): Mixtral is `TopK(2)` without one, Switch is `SoftmaxTopK(1)`
with `Share(1.25)`, GShard is `RandomSecond()` with `Share(1.0)`.

The losses that keep the load even are returned beside the output, each weighted already, and in
training alone: their sum is what training adds to its loss.

Axes: B batch, T time, E experts, K choices of a token, N real tokens, P pairs of a token and an
expert that it asks, C model width, F inner width
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.nn.context import Context
from stemma.nn.dispatch import Capacity, admit, dispatch
from stemma.nn.mlp import Activation
from stemma.nn.residual import Losses
from stemma.nn.router import Router, Routing


class GatedExperts(nn.Module):
    """Gated feed-forward networks side by side, arXiv:2401.04088, section 2.1 (with SiLU).

    Parameters `gate` and `up` are (E, F, C), `down` is (E, C, F).
    """

    def __init__(
        self, num_experts: int, width: int, hidden: int, *, activation: Activation = F.silu
    ) -> None:
        super().__init__()
        self.num_experts, self.activation = num_experts, activation
        self.gate = nn.Parameter(torch.empty(num_experts, hidden, width))
        self.up = nn.Parameter(torch.empty(num_experts, hidden, width))
        self.down = nn.Parameter(torch.empty(num_experts, width, hidden))

    def forward(self, x_PC: Tensor, sizes: Sequence[int]) -> Tensor:
        """Answers (P, C) to tokens sorted by expert, `sizes` of them for each."""
        parts = zip(torch.split(x_PC, list(sizes)), self.gate, self.up, self.down, strict=True)
        answers = [
            F.linear(self.activation(F.linear(x, gate)) * F.linear(x, up), down) if len(x) else x
            for x, gate, up, down in parts
        ]
        return torch.cat(answers)


class PlainExperts(nn.Module):
    """Two-layer networks side by side, arXiv:2101.03961, section 2 (with ReLU).

    Parameters `up` (E, F, C) and `down` (E, C, F). `dropout` is that inside an expert, section 2.4.
    """

    def __init__(
        self,
        num_experts: int,
        width: int,
        hidden: int,
        *,
        activation: Activation = F.relu,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_experts, self.activation = num_experts, activation
        self.up = nn.Parameter(torch.empty(num_experts, hidden, width))
        self.down = nn.Parameter(torch.empty(num_experts, width, hidden))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_PC: Tensor, sizes: Sequence[int]) -> Tensor:
        """Answers (P, C) to tokens sorted by expert, `sizes` of them for each."""
        parts = zip(torch.split(x_PC, list(sizes)), self.up, self.down, strict=True)
        answers = [
            F.linear(self.dropout(self.activation(F.linear(x, up))), down) if len(x) else x
            for x, up, down in parts
        ]
        return torch.cat(answers)


class MoE(nn.Module):
    """Experts and their router, as a sublayer.

    Padding asks no expert and counts in no loss. Without a capacity a token's output depends on
    that token alone. With one it depends on the row, as it did in training; with a cache no
    capacity holds, so decoding never drops a token, however the text is cut.

    `balance_loss` and `z_loss` weight the losses `moe.balance` and `moe.z`. `jitter` is how far,
    in training, each number that the router reads may be scaled up or down (arXiv:2101.03961,
    appendix C); what the experts read stays as it is. Raises ValueError where a token would
    ask more experts than there are.
    """

    def __init__(
        self,
        width: int,
        experts: GatedExperts | PlainExperts,
        *,
        router: Router,
        capacity: Capacity | None = None,
        balance_loss: float = 0.0,
        z_loss: float = 0.0,
        jitter: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if router.choices > experts.num_experts:
            what = f"a token asks {router.choices} experts, but there are {experts.num_experts}"
            raise ValueError(what)
        self.choose, self.capacity, self.jitter = router, capacity, jitter
        self.balance_loss, self.z_loss = balance_loss, z_loss
        self.router = nn.Linear(width, experts.num_experts, bias=False)
        self.experts = experts
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTC: Tensor, context: Context) -> tuple[Tensor, Losses]:
        scores_BTE = self.scores(x_BTC)
        routing = self.route(scores_BTE, context)
        update_BTC = dispatch(x_BTC, routing, self.experts.num_experts, self.experts)
        return self.dropout(update_BTC), self._losses(scores_BTE, routing, context.real_BT)

    def scores(self, x_BTC: Tensor) -> Tensor:
        """The router's logits (B, T, E), in fp32 at least."""
        x_BTC = x_BTC.float() if x_BTC.dtype in (torch.float16, torch.bfloat16) else x_BTC
        if self.training and self.jitter:
            x_BTC = x_BTC * torch.empty_like(x_BTC).uniform_(1 - self.jitter, 1 + self.jitter)
        return F.linear(x_BTC, self.router.weight.to(x_BTC.dtype))

    def route(self, scores_BTE: Tensor, context: Context) -> Routing:
        """Whom each token asks, after padding and full experts were taken out."""
        routing = self.choose(scores_BTE, training=self.training)
        if context.real_BT is not None:
            weights_BTK = routing.weights_BTK * context.real_BT[..., None]
            routing = routing._replace(weights_BTK=weights_BTK)
        if self.capacity is None or context.caches is not None:
            return routing
        num_experts, choices = self.experts.num_experts, self.choose.choices
        tokens_B = (routing.weights_BTK[..., 0] > 0).sum(1)
        places_B = self.capacity(tokens_B, choices=choices, num_experts=num_experts)
        return admit(routing, places_B, num_experts)

    def _losses(self, scores_BTE: Tensor, routing: Routing, real_BT: Tensor | None) -> Losses:
        losses: Losses = {}
        if self.training and self.balance_loss:
            balance = balance_loss(scores_BTE, routing.experts_BTK, real_BT)
            losses["moe.balance"] = self.balance_loss * balance
        if self.training and self.z_loss:
            losses["moe.z"] = self.z_loss * z_loss(scores_BTE, real_BT)
        return losses


def balance_loss(scores_BTE: Tensor, experts_BTK: Tensor, real_BT: Tensor | None = None) -> Tensor:
    """E times the sum over experts of load times mean probability, arXiv:2101.03961, equation 4.

    The load (equation 5) counts all choices of a token, before any was dropped, and divides by
    their number, so an even load gives 1 for every K. It is taken for one layer; transformers
    pools the layers of Mixtral, where two uneven layers may cancel, and does not divide by K.
    """
    num_experts = scores_BTE.shape[-1]
    probability_NE = real(scores_BTE, real_BT).softmax(-1)
    load_E = expert_load(experts_BTK, num_experts, real_BT).to(probability_NE.dtype)
    mean_E = probability_NE.sum(0) / max(1, len(probability_NE))
    return num_experts * (load_E * mean_E).sum()


def z_loss(scores_BTE: Tensor, real_BT: Tensor | None = None) -> Tensor:
    """Mean square of the logarithm of the softmax's denominator, arXiv:2202.08906, equation 5."""
    log_total_N = real(scores_BTE, real_BT).logsumexp(-1)
    return log_total_N.square().sum() / max(1, len(log_total_N))


def expert_load(experts_BTK: Tensor, num_experts: int, real_BT: Tensor | None = None) -> Tensor:
    """The share of the choices of real tokens that each expert has, (E,), fp64; 1 / E if even."""
    chosen = real(experts_BTK, real_BT).flatten()
    return torch.bincount(chosen, minlength=num_experts).double() / max(1, len(chosen))


def real(x_BTC: Tensor, real_BT: Tensor | None) -> Tensor:
    """The rows (N, C) of real tokens."""
    if real_BT is None:
        return x_BTC.flatten(0, 1)
    return x_BTC[real_BT.expand(x_BTC.shape[:2])]
