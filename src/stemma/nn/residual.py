"""Residual schemes: the only place that knows where norms stand.

A scheme takes the stream, the (norm, sublayer) pairs of a block and the context, and gives back
the stream and the auxiliary losses. A sublayer answers with its output and its losses by name;
dense layers have none. Losses are returned, never appended to a shared list: activation
checkpointing would append twice, and a pipeline stage could not append at all.

Axes: B batch, T time, C model width
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from stemma.nn.context import Context

Losses = dict[str, Tensor]
Sublayer = tuple[nn.Module, nn.Module]  # its norm, and the layer itself
Residual = Callable[[Tensor, Sequence[Sublayer], Context], tuple[Tensor, Losses]]


@dataclass(frozen=True)
class PreNorm:
    """x + f(norm(x)): the placement of GPT-2 and of nearly all since, arXiv:2002.04745, table 1."""

    def __call__(
        self, x_BTC: Tensor, sublayers: Sequence[Sublayer], context: Context
    ) -> tuple[Tensor, Losses]:
        losses: Losses = {}
        for norm, layer in sublayers:
            update_BTC, new_losses = layer(norm(x_BTC), context)
            x_BTC = x_BTC + update_BTC
            losses |= new_losses
        return x_BTC, losses
