"""Alignment: how well what a decoder knows fits each token of a memory, and a cell that uses it.

Scores of 2014 and 2015, before scaled dot products: additive (arXiv:1409.0473) and multiplicative
(arXiv:1508.04025). What a score needs of the memory alone is computed once, not at every step.
Padding of the memory is masked before the softmax, so its weight is exactly zero.

Axes: B batch, T time, M memory (source) tokens, K width that is compared, C width, G the gates'
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stemma.nn.cache import Slots, TensorState
from stemma.nn.cells import Carry, Cell, GateHidden, GateInput
from stemma.nn.context import Context
from stemma.nn.recurrent import by_time, carry_of, chosen, stacked
from stemma.nn.residual import Losses


class Additive(nn.Module):
    """v · tanh(W s + U h), arXiv:1409.0473, appendix A.1.2.

    It is Luong's "concat" too, v · tanh(W' [s; h]) with W' = [W U], arXiv:1508.04025, section 3.1.
    """

    def __init__(self, width: int, memory_width: int, hidden: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, hidden, bias=False)
        self.key = nn.Linear(memory_width, hidden, bias=False)
        self.score = nn.Linear(hidden, 1, bias=False)

    def keys(self, memory_BMC: Tensor) -> Tensor:
        """U h for every token of the memory, (B, M, K)."""
        keys_BMK: Tensor = self.key(memory_BMC)
        return keys_BMK

    def forward(self, query_BTC: Tensor, keys_BMK: Tensor) -> Tensor:
        compared = torch.tanh(self.query(query_BTC)[:, :, None] + keys_BMK[:, None])
        scores_BTM: Tensor = self.score(compared).squeeze(-1)
        return scores_BTM


class Dot(nn.Module):
    """s · h, arXiv:1508.04025, section 3.1: both must have the same width; no parameter."""

    def keys(self, memory_BMC: Tensor) -> Tensor:
        """The memory as it is."""
        return memory_BMC

    def forward(self, query_BTC: Tensor, keys_BMK: Tensor) -> Tensor:
        if query_BTC.shape[-1] != keys_BMK.shape[-1]:
            what = f"a query of width {query_BTC.shape[-1]} and a memory of {keys_BMK.shape[-1]}"
            raise ValueError(f"{what} have no dot product; the general score maps one to the other")
        return query_BTC @ keys_BMK.transpose(1, 2)


class General(nn.Module):
    """s · W h, arXiv:1508.04025, section 3.1."""

    def __init__(self, width: int, memory_width: int) -> None:
        super().__init__()
        self.key = nn.Linear(memory_width, width, bias=False)

    def keys(self, memory_BMC: Tensor) -> Tensor:
        """W h for every token of the memory, (B, M, K)."""
        keys_BMK: Tensor = self.key(memory_BMC)
        return keys_BMK

    def forward(self, query_BTC: Tensor, keys_BMK: Tensor) -> Tensor:
        return query_BTC @ keys_BMK.transpose(1, 2)


Alignment = Additive | Dot | General


def align(scores_BTM: Tensor, real_BM: Tensor | None) -> Tensor:
    """Softmax of the scores over the real tokens of the memory, arXiv:1409.0473, equation 6.

    A row whose memory has no real token gets zeros, not NaN.
    """
    if real_BM is None:
        return scores_BTM.softmax(-1)
    padding_B1M = ~real_BM[:, None]
    least = torch.finfo(scores_BTM.dtype).min  # minus infinity would be 0/0 in a row of padding
    weights_BTM = scores_BTM.masked_fill(padding_B1M, least).softmax(-1)
    return weights_BTM.masked_fill(padding_B1M, 0.0)


def first_real(memory_BMC: Tensor, real_BM: Tensor | None) -> Tensor:
    """The first real token of each row's memory (B, C); zeros of an empty one."""
    if not memory_BMC.shape[1]:
        return memory_BMC.new_zeros(len(memory_BMC), memory_BMC.shape[2])
    if real_BM is None:
        return memory_BMC[:, 0]
    rows_B = torch.arange(len(memory_BMC), device=memory_BMC.device)
    return memory_BMC[rows_B, real_BM.long().argmax(1)]


class AlignedRecurrence(nn.Module):
    """A cell that looks at the memory before each step, arXiv:1409.0473, section 3.1.

    The carry s_{t-1} is scored against the memory, the weighted sum c_t of the memory goes into
    the cell beside the input, and both s_t and c_t leave, (B, T, width + memory width). The first
    carry is tanh(W h_1), where h_1 is the backward half of the first real token's annotation.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        memory_width: int,
        cell: Cell,
        alignment: Alignment,
        *,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.width, self.cell, self.alignment = width, cell, alignment
        self.begin = nn.Linear(memory_width // 2, width)
        self.input = GateInput(inputs, width, cell)
        self.context = GateInput(memory_width, width, cell, bias=False)
        self.hidden = GateHidden(width, cell)
        self.dropout = nn.Dropout(dropout)

    def new_state(self, slots: Mapping[int | None, Slots]) -> TensorState:
        """Room for the carry, the memory, and what the score keeps of it."""
        return TensorState()

    def forward(self, x_BTC: Tensor, context: Context) -> tuple[Tensor, Losses]:
        return self.dropout(self.aligned(x_BTC, context)[0]), {}

    def aligned(self, x_BTC: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """What leaves, and the weights of the memory's tokens at every step (B, T, M)."""
        if context.document_ids_BT is not None:
            raise ValueError("a decoder of one memory a row cannot read several documents in a row")
        state = context.cache if isinstance(context.cache, TensorState) else TensorState()
        self._remember(state, context)
        carry: Carry = carry_of(self.cell, state, x_BTC, self.width)
        paused = by_time(None if context.real_BT is None else ~context.real_BT)
        memory: Any = state.get("memory")
        keys, real, step = state.get("keys"), state.get("real"), self.cell.bind(self.hidden)
        outputs, weights = [], []
        for time, part_BG in enumerate(self.input(x_BTC).unbind(1)):
            weights_B1M = align(self.alignment(carry[0][:, None], keys), real)
            seen_BC = (weights_B1M @ memory).squeeze(1)
            new = step(part_BG + self.context(seen_BC), carry)
            carry = chosen(paused[time], carry, new) if time in paused else new
            outputs.append(torch.cat((carry[0], seen_BC), dim=-1))
            weights.append(weights_B1M.squeeze(1))
        state.put(**dict(zip(self.cell.carried, carry, strict=True)))
        width = self.width + memory.shape[-1]
        return (
            stacked(outputs, like=x_BTC, width=width),
            stacked(weights, like=x_BTC, width=memory.shape[1]),
        )

    def _remember(self, state: TensorState, context: Context) -> None:
        """At the first pass: keep the memory, its keys and its padding, and begin from it."""
        if state.get("memory") is not None:
            return
        memory_BMC, real_BM = context.memory_BMC, context.memory_padding_BM
        if memory_BMC is None:
            raise ValueError("the decoder needs a memory: encode the source first")
        state.put(memory=memory_BMC, keys=self.alignment.keys(memory_BMC))
        if real_BM is not None:
            state.put(real=real_BM)
        first_BC = first_real(memory_BMC, real_BM)
        begin_BC = torch.tanh(self.begin(first_BC[:, first_BC.shape[1] // 2 :]))
        carry = (begin_BC, *(torch.zeros_like(begin_BC) for _ in self.cell.carried[1:]))
        state.put(**dict(zip(self.cell.carried, carry, strict=True)))
