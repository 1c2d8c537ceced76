"""Recurrent layers: a cell unrolled over time, in one direction or in both.

The inputs of all time steps go through one matrix product; only the product with the last output
is looped over. Padding leaves what is carried as it is, and with every document it begins anew.
The LSTM hands long plain stretches on a CPU to torch's own kernel: 79 instead of 204 ms forward
and backward (16 rows, 256 tokens, width 256, one core); for the other cells torch has none that is
faster than the loop here.

Axes: B batch, T time, C width, G the gates' width
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from stemma.nn.cache import Slots, TensorState
from stemma.nn.cells import Carry, Cell, GateHidden, GateInput, Step
from stemma.nn.context import Context
from stemma.nn.residual import Losses

Rows = Mapping[int, Tensor]  # which rows (B or 1, 1), by time; times that concern none are absent
FUSED_FROM = 16  # time steps, on average, for which torch's kernel is worth its start


def by_time(rows_BT: Tensor | None) -> dict[int, Tensor]:
    """The columns (B, 1) that are true somewhere, by their time."""
    if rows_BT is None:
        return {}
    times = rows_BT.any(0).nonzero().flatten().tolist()
    return {time: rows_BT[:, time, None] for time in times}


def document_starts(ids_BT: Tensor, real_BT: Tensor | None) -> Tensor:
    """True at real tokens whose document is another than that of the real token before."""
    if real_BT is None:
        real_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    rows = max(len(ids_BT), len(real_BT))
    ids_BT, real_BT = ids_BT.expand(rows, -1), real_BT.expand(rows, -1)
    places = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    last_BT = torch.where(real_BT, places, -1).cummax(1).values
    before_BT = nn.functional.pad(last_BT, (1, 0), value=-1)[:, :-1]
    # a row's first real token may say either: it begins from zeros anyhow
    return real_BT & (ids_BT != ids_BT.gather(1, before_BT.clamp(min=0)))


def chosen(rows: Tensor, first: Carry, second: Carry) -> Carry:
    """The first carry in these rows, the second in the others."""
    return tuple(torch.where(rows, a, b) for a, b in zip(first, second, strict=True))


def unroll(
    step: Step, part_BTG: Tensor, carry: Carry, began: Rows, paused: Rows
) -> tuple[Tensor, Carry]:
    """One step after the other: outputs (B, T, C) and the last carry.

    Rows start from zeros where they `began`; where they are `paused` their carry stays.
    """
    outputs, nothing = [], tuple(torch.zeros_like(tensor) for tensor in carry)
    for time, part_BG in enumerate(part_BTG.unbind(1)):
        if time in began:
            carry = chosen(began[time], nothing, carry)
        new = step(part_BG, carry)
        carry = chosen(paused[time], carry, new) if time in paused else new
        outputs.append(carry[0])
    return stacked(outputs, like=part_BTG, width=carry[0].shape[-1]), carry


def stacked(steps: Sequence[Tensor], *, like: Tensor, width: int) -> Tensor:
    """What left at each step (B, width), side by side in time (B, T, width); T may be 0."""
    return torch.stack(list(steps), 1) if steps else like.new_empty(len(like), 0, width)


class Recurrence(nn.Module):
    """A cell unrolled over time: a sublayer that keeps what it carries between passes.

    Dropout falls on what leaves, never on what is carried, arXiv:1409.2329, section 3.1.
    """

    def __init__(
        self, inputs: int, width: int, cell: Cell, *, bias: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.width, self.cell = width, cell
        self.input = GateInput(inputs, width, cell, bias=bias)
        self.hidden = GateHidden(width, cell, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def new_state(self, slots: Mapping[int | None, Slots]) -> TensorState:
        """Room for what the cell carries."""
        return TensorState()

    def forward(self, x_BTC: Tensor, context: Context) -> tuple[Tensor, Losses]:
        state = context.cache if isinstance(context.cache, TensorState) else TensorState()
        ids_BT, real_BT = context.document_ids_BT, context.real_BT
        if ids_BT is not None and context.caches is not None:
            raise ValueError("document ids and caches do not go together")
        carry = carry_of(self.cell, state, x_BTC, self.width)
        began = by_time(None if ids_BT is None else document_starts(ids_BT, real_BT))
        paused = by_time(None if real_BT is None else ~real_BT)
        found = None if paused else self._fused(x_BTC, carry, list(began.items()))
        if found is None:
            step = self.cell.bind(self.hidden)
            found = unroll(step, self.input(x_BTC), carry, began, paused)
        state.put(**dict(zip(self.cell.carried, found[1], strict=True)))
        return self.dropout(found[0]), {}

    def _fused(
        self, x_BTC: Tensor, carry: Carry, began: list[tuple[int, Tensor]]
    ) -> tuple[Tensor, Carry] | None:
        """Stretches between the times at which a document begins, each by the cell's kernel."""
        if x_BTC.shape[1] < FUSED_FROM * (len(began) + 1):
            return None
        outputs, times = [], [0, *(time for time, _ in began), x_BTC.shape[1]]
        for index, (first, end) in enumerate(zip(times, times[1:], strict=False)):
            if index:
                rows = began[index - 1][1]
                carry = chosen(rows, tuple(torch.zeros_like(t) for t in carry), carry)
            found = self.cell.fused(x_BTC[:, first:end], carry, self.input, self.hidden)
            if found is None:
                return None
            outputs.append(found[0])
            carry = found[1]
        return torch.cat(outputs, dim=1), carry


def carry_of(cell: Cell, state: TensorState, x_BTC: Tensor, width: int) -> Carry:
    """What the last pass left, or zeros before the first."""
    kept: list[Any] = [state.get(name) for name in cell.carried]
    if kept[0] is None:
        kept = [x_BTC.new_zeros(len(x_BTC), width) for _ in kept]
    return tuple(kept)


class Bidirectional(nn.Module):
    """Two recurrences, one from the first token on and one from the last, side by side (B, T, 2C).

    Bidirectional recurrent networks, Schuster and Paliwal, 1997. The second begins at each row's
    last real token and ends at its first.
    """

    def __init__(self, inputs: int, width: int, cell: Cell, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.forwards = Recurrence(inputs, width, cell)
        self.backwards = Recurrence(inputs, width, cell)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTC: Tensor, context: Context) -> tuple[Tensor, Losses]:
        if context.caches is not None:
            raise ValueError("a network that reads backwards needs the whole text: no cache")
        ids_BT, real_BT = context.document_ids_BT, context.real_BT
        turned = replace(
            context,
            document_ids_BT=None if ids_BT is None else ids_BT.flip(1),
            real_BT=None if real_BT is None else real_BT.flip(1),
        )
        ahead_BTC, _ = self.forwards(x_BTC, context)
        back_BTC, _ = self.backwards(x_BTC.flip(1), turned)
        return self.dropout(torch.cat((ahead_BTC, back_BTC.flip(1)), dim=-1)), {}
