"""Channel mixers: the two-layer perceptron and its gated form.

Axes: B batch, T time, C model width
"""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from stemma.nn.context import Context
from stemma.nn.residual import Losses

Activation = Callable[[Tensor], Tensor]

gelu_tanh: Activation = partial(F.gelu, approximate="tanh")
"""The approximation that GPT-2 was trained with, arXiv:1606.08415, section 2."""

ACTIVATIONS: dict[str, Activation] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "silu": F.silu,
}
"""By the names that a config may say."""


class MLP(nn.Module):
    """Position-wise feed-forward network, arXiv:1706.03762, equation 2."""

    def __init__(
        self, width: int, hidden: int, *, activation: Activation, bias: bool, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.activation = activation
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTC: Tensor, context: Context) -> tuple[Tensor, Losses]:
        return self.dropout(self.down(self.activation(self.up(x_BTC)))), {}


class GLU(nn.Module):
    """Gated linear unit; with SiLU it is SwiGLU, arXiv:2002.05202, equation 6."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: Activation = F.silu,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.gate = nn.Linear(width, hidden, bias=bias)
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTC: Tensor, context: Context) -> tuple[Tensor, Losses]:
        return self.dropout(self.down(self.activation(self.gate(x_BTC)) * self.up(x_BTC))), {}
