"""The last linear layer: from the stream to a score for every vocabulary entry.

Every head is a linear layer in the end. `projection` says of what, so that a loss can take the
vocabulary's scores a few places at a time and never hold them all.

Axes: B batch, T time, C model width, V vocabulary
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stemma.nn.mlp import Activation
from stemma.nn.norm import Norm


class Projection(NamedTuple):
    """What the scores are made of: features (..., C) @ weight (V, C) transposed, plus bias (V,)."""

    features: Tensor
    weight: Tensor
    bias: Tensor | None

    def scores(self) -> Tensor:
        """All of them at once, (..., V)."""
        return nn.functional.linear(self.features, self.weight, self.bias)


class Head(nn.Module):
    """Scores from the embedding's own weights where `tied`, with a bias and a scale if asked.

    `scale` multiplies the stream: T5 divides it by the root of the width where the head is tied.
    """

    def __init__(
        self, width: int, vocab_size: int, *, tied: bool, bias: bool, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.scale = scale
        self.weight = None if tied else nn.Parameter(torch.empty(vocab_size, width))
        self.bias = nn.Parameter(torch.empty(vocab_size)) if bias else None

    def projection(self, x_BTC: Tensor, embedding_VC: Tensor) -> Projection:
        weight_VC = embedding_VC if self.weight is None else self.weight
        return Projection(x_BTC * self.scale, weight_VC, self.bias)

    def forward(self, x_BTC: Tensor, embedding_VC: Tensor) -> Tensor:
        return self.projection(x_BTC, embedding_VC).scores()


class MaskedHead(nn.Module):
    """BERT's scores of what a mask stands for, arXiv:1810.04805, appendix A.2, as it was released.

    The stream goes through one more layer and a norm before it meets the embedding's weights,
    or weights of its own where not `tied`.
    """

    def __init__(
        self, width: int, vocab_size: int, *, activation: Activation, norm: Norm, tied: bool
    ) -> None:
        super().__init__()
        self.activation = activation
        self.dense = nn.Linear(width, width)
        self.norm = norm(width)
        self.weight = None if tied else nn.Parameter(torch.empty(vocab_size, width))
        self.bias = nn.Parameter(torch.empty(vocab_size))

    def projection(self, x_BTC: Tensor, embedding_VC: Tensor) -> Projection:
        x_BTC = self.norm(self.activation(self.dense(x_BTC)))
        weight_VC = embedding_VC if self.weight is None else self.weight
        return Projection(x_BTC, weight_VC, self.bias)

    def forward(self, x_BTC: Tensor, embedding_VC: Tensor) -> Tensor:
        return self.projection(x_BTC, embedding_VC).scores()


class NormHead(nn.Module):
    """A head whose rows are brought to length one, as Baichuan 2 has it (arXiv:2309.10305).

    The scores are then of directions alone: rare tokens with short rows lose nothing by it.
    """

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, width))

    def projection(self, x_BTC: Tensor) -> Projection:
        return Projection(x_BTC, nn.functional.normalize(self.weight), None)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.projection(x_BTC).scores()
