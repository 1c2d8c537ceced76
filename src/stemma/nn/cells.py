"""Recurrent cells as values: their gates, what they carry from step to step, and their equations.

A cell owns no weights: whoever unrolls it has a `GateInput` for what comes in and a `GateHidden`
for the last output, the gates stacked on the first axis in torch's order. New hidden matrices are
orthogonal gate by gate (arXiv:1312.6120, section 3; so begins arXiv:1409.0473, appendix B.1), input
matrices N(0, 1 / inputs), biases zero but for the LSTM's forget gate.

Axes: B batch, T time, C width, G the gates' width
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

Carry = tuple[Tensor, ...]  # what a cell carries, (B, C) each; the first is its output
Step = Callable[[Tensor, Carry], Carry]


class Cell(Protocol):
    """What the cells have in common.

    `carried` names the tensors of the carry, `hidden_bias` says whether the product with the last
    output has a bias of its own.
    """

    num_gates: ClassVar[int]
    carried: ClassVar[tuple[str, ...]]
    hidden_bias: ClassVar[bool]

    def bind(self, hidden: nn.Linear) -> Step:
        """The step of time for these weights: the gates' input part (B, G) and carry to carry."""

    def start_bias(self, width: int) -> Tensor | None:
        """Initial bias of the input part (G,), None for zeros."""

    def fused(
        self, x_BTC: Tensor, carry: Carry, input: nn.Linear, hidden: nn.Linear
    ) -> tuple[Tensor, Carry] | None:
        """All steps at once, outputs (B, T, C) and the last carry; None where no kernel does it."""


@dataclass(frozen=True)
class RNN:
    """h = tanh(W x + U h), Elman, "Finding structure in time", 1990."""

    num_gates: ClassVar[int] = 1
    carried: ClassVar[tuple[str, ...]] = ("hidden",)
    hidden_bias: ClassVar[bool] = True

    def bind(self, hidden: nn.Linear) -> Step:
        return lambda part_BG, carry: (torch.tanh(part_BG + hidden(carry[0])),)

    def start_bias(self, width: int) -> None:
        return None

    def fused(self, x_BTC: Tensor, carry: Carry, input: nn.Linear, hidden: nn.Linear) -> None:
        return None


@dataclass(frozen=True)
class LSTM:
    """Long short-term memory with a forget gate, arXiv:1409.2329, section 3; gates i, f, g, o.

    The forget gate's bias begins at one: Jozefowicz et al., "An empirical exploration of recurrent
    network architectures", 2015, section 2.2.
    """

    num_gates: ClassVar[int] = 4
    carried: ClassVar[tuple[str, ...]] = ("hidden", "cell")
    hidden_bias: ClassVar[bool] = True

    def bind(self, hidden: nn.Linear) -> Step:
        def step(part_BG: Tensor, carry: Carry) -> Carry:
            i, f, g, o = (part_BG + hidden(carry[0])).chunk(4, dim=-1)
            cell = f.sigmoid() * carry[1] + i.sigmoid() * g.tanh()
            return o.sigmoid() * cell.tanh(), cell

        return step

    def start_bias(self, width: int) -> Tensor:
        bias = torch.zeros(4, width)
        bias[1] = 1.0
        return bias.flatten()

    def fused(
        self, x_BTC: Tensor, carry: Carry, input: nn.Linear, hidden: nn.Linear
    ) -> tuple[Tensor, Carry] | None:
        weights = [input.weight, hidden.weight]
        if input.bias is not None and hidden.bias is not None:
            weights += [input.bias, hidden.bias]
        plain = type(input) is GateInput and type(hidden) is GateHidden  # nothing was put between
        kinds = {(t.device.type, t.dtype) for t in (x_BTC, *carry, *weights)}
        if not plain or kinds != {("cpu", torch.float32)}:
            return None
        begin = [t[None] for t in carry]
        grad, biased = torch.is_grad_enabled(), len(weights) == 4
        y_BTC, *last = torch.lstm(x_BTC, begin, weights, biased, 1, 0.0, grad, False, True)
        return y_BTC, tuple(t[0] for t in last)


@dataclass(frozen=True)
class GRU:
    """Gated recurrent unit as torch and cuDNN have it: gates r, z, n, and h = (1 - z) n + z h.

    The reset gate multiplies the finished product, n = tanh(W x + r (U h + b)), so that one
    product serves all gates: a different cell from the one of 2014, which is `ChoGRU`.
    """

    num_gates: ClassVar[int] = 3
    carried: ClassVar[tuple[str, ...]] = ("hidden",)
    hidden_bias: ClassVar[bool] = True

    def bind(self, hidden: nn.Linear) -> Step:
        sizes = [2 * hidden.in_features, hidden.in_features]

        def step(part_BG: Tensor, carry: Carry) -> Carry:
            gates, candidate = part_BG.split_with_sizes(sizes, dim=-1)
            more_gates, past = hidden(carry[0]).split_with_sizes(sizes, dim=-1)
            r, z = (gates + more_gates).sigmoid().chunk(2, dim=-1)
            new = (candidate + r * past).tanh()
            return (new + z * (carry[0] - new),)

        return step

    def start_bias(self, width: int) -> None:
        return None

    def fused(self, x_BTC: Tensor, carry: Carry, input: nn.Linear, hidden: nn.Linear) -> None:
        return None


@dataclass(frozen=True)
class ChoGRU:
    """Gated recurrent unit of 2014, arXiv:1406.1078, equations 5 to 8; gates r, z, n.

    The reset gate multiplies the past before the product: n = tanh(W x + U (r h)), and
    h = (1 - z) n + z h. arXiv:1409.0473, appendix A.1.1, writes 1 - z for this z.
    """

    num_gates: ClassVar[int] = 3
    carried: ClassVar[tuple[str, ...]] = ("hidden",)
    hidden_bias: ClassVar[bool] = False

    def bind(self, hidden: nn.Linear) -> Step:
        if type(hidden) is not GateHidden:
            raise TypeError(f"a ChoGRU takes its matrix apart: not possible in {type(hidden)}")
        sizes = [2 * hidden.in_features, hidden.in_features]
        gate_weight, candidate_weight = hidden.weight.split_with_sizes(sizes)

        def step(part_BG: Tensor, carry: Carry) -> Carry:
            gates, candidate = part_BG.split_with_sizes(sizes, dim=-1)
            past = nn.functional.linear(carry[0], gate_weight)
            r, z = (gates + past).sigmoid().chunk(2, dim=-1)
            past = nn.functional.linear(r * carry[0], candidate_weight)
            new = (candidate + past).tanh()
            return (new + z * (carry[0] - new),)

        return step

    def start_bias(self, width: int) -> None:
        return None

    def fused(self, x_BTC: Tensor, carry: Carry, input: nn.Linear, hidden: nn.Linear) -> None:
        return None


class GateInput(nn.Linear):
    """The product of a cell's gates with what comes in."""

    def __init__(self, inputs: int, width: int, cell: Cell, *, bias: bool = True) -> None:
        super().__init__(inputs, cell.num_gates * width, bias=bias)
        self.width, self.cell = width, cell

    def start(self, name: str, generator: torch.Generator) -> Tensor | None:
        """Initial values: the cell's bias, and a matrix that keeps the size of what comes in."""
        if name == "bias":
            return self.cell.start_bias(self.width)
        drawn = torch.empty(self.weight.shape)
        return drawn.normal_(0.0, self.in_features**-0.5, generator=generator)


class GateHidden(nn.Linear):
    """The product of a cell's gates with its last output."""

    def __init__(self, width: int, cell: Cell, *, bias: bool = True) -> None:
        super().__init__(width, cell.num_gates * width, bias=bias and cell.hidden_bias)

    def start(self, name: str, generator: torch.Generator) -> Tensor | None:
        """Initial values: a random orthogonal matrix for each gate."""
        if name == "bias":
            return None
        drawn = torch.empty(self.weight.shape).normal_(generator=generator)
        square = drawn.view(-1, self.in_features, self.in_features)
        orthogonal, upper = torch.linalg.qr(square)
        signs = upper.diagonal(dim1=-2, dim2=-1).sign()  # makes every rotation equally likely
        even: Tensor = orthogonal * signs[:, None, :]
        return even.reshape(self.weight.shape)
