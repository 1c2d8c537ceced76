"""Residual schemes: the only place that knows where norms stand.

A scheme takes the stream and the sublayers of a block, and gives back the stream and the auxiliary
losses. A sublayer answers with its output and its losses by name; dense layers have none. Losses
are returned, never appended to a shared list: activation checkpointing would append twice, and a
pipeline stage could not append at all. `begin` makes the stream of what was embedded, `finish` the
last block's output of it, with the stack's final norm.

Axes: B batch, T time, C model width
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor, nn

from stemma.nn.context import Context

Losses = dict[str, Tensor]
Stream = Any  # a tensor (B, T, C), or the two of ResiDual


class Sublayer(NamedTuple):
    """One layer of a block with its norm, what it may see, and the second norm if there is one."""

    norm: nn.Module
    layer: nn.Module
    context: Context
    post_norm: nn.Module | None


class Residual(Protocol):
    """What the schemes have in common; `post_norms` asks the block for second norms."""

    post_norms: ClassVar[bool]

    def begin(self, x_BTC: Tensor, /) -> Stream:
        """The stream of what was embedded."""

    def __call__(self, stream: Stream, sublayers: Sequence[Sublayer], /) -> tuple[Stream, Losses]:
        """Send the stream through one block."""

    def finish(self, stream: Stream, norm: nn.Module, /) -> Tensor:
        """What leaves the stack, (B, T, C)."""


def one_stream(x_BTC: Tensor) -> Tensor:
    """What was embedded, as it is: the `begin` of every scheme but ResiDual."""
    return x_BTC


def normed(x_BTC: Tensor, norm: nn.Module) -> Tensor:
    """The final norm of the stream: the `finish` that belongs to `one_stream`."""
    normed_BTC: Tensor = norm(x_BTC)
    return normed_BTC


@dataclass(frozen=True)
class PreNorm:
    """x + f(norm(x)): the placement of GPT-2 and of nearly all since, arXiv:2002.04745, table 1."""

    post_norms: ClassVar[bool] = False
    begin, finish = staticmethod(one_stream), staticmethod(normed)

    def __call__(self, x_BTC: Tensor, sublayers: Sequence[Sublayer]) -> tuple[Tensor, Losses]:
        losses: Losses = {}
        for norm, layer, context, _ in sublayers:
            update_BTC, new_losses = layer(norm(x_BTC), context)
            x_BTC = x_BTC + update_BTC
            losses |= new_losses
        return x_BTC, losses


@dataclass(frozen=True)
class PostNorm:
    """norm(x + f(x)): the placement of the first Transformer, arXiv:1706.03762, section 3.1.

    The stream leaves every block normalised, so families with it have no final norm (`no_norm`).
    """

    post_norms: ClassVar[bool] = False
    begin, finish = staticmethod(one_stream), staticmethod(normed)

    def __call__(self, x_BTC: Tensor, sublayers: Sequence[Sublayer]) -> tuple[Tensor, Losses]:
        losses: Losses = {}
        for norm, layer, context, _ in sublayers:
            update_BTC, new_losses = layer(x_BTC, context)
            x_BTC = norm(x_BTC + update_BTC)
            losses |= new_losses
        return x_BTC, losses


@dataclass(frozen=True)
class Parallel:
    """x + f(norm(x)) + g(norm'(x)): sublayers read one stream, arXiv:2204.06745, section 2.1."""

    post_norms: ClassVar[bool] = False
    begin, finish = staticmethod(one_stream), staticmethod(normed)

    def __call__(self, x_BTC: Tensor, sublayers: Sequence[Sublayer]) -> tuple[Tensor, Losses]:
        losses: Losses = {}
        update_BTC = x_BTC
        for norm, layer, context, _ in sublayers:
            part_BTC, new_losses = layer(norm(x_BTC), context)
            update_BTC = update_BTC + part_BTC
            losses |= new_losses
        return update_BTC, losses


@dataclass(frozen=True)
class ResiDual:
    """Two streams, arXiv:2304.14802, section 2.2: x = norm(x + f(x)) and dual = dual + f(x).

    What leaves is x + norm(dual): the gradient of the dual stream reaches every layer unscaled.
    """

    post_norms: ClassVar[bool] = False

    def begin(self, x_BTC: Tensor) -> tuple[Tensor, Tensor]:
        return x_BTC, x_BTC

    def __call__(
        self, stream: tuple[Tensor, Tensor], sublayers: Sequence[Sublayer]
    ) -> tuple[tuple[Tensor, Tensor], Losses]:
        x_BTC, dual_BTC = stream
        losses: Losses = {}
        for norm, layer, context, _ in sublayers:
            update_BTC, new_losses = layer(x_BTC, context)
            dual_BTC = dual_BTC + update_BTC
            x_BTC = norm(x_BTC + update_BTC)
            losses |= new_losses
        return (x_BTC, dual_BTC), losses

    def finish(self, stream: tuple[Tensor, Tensor], norm: nn.Module) -> Tensor:
        x_BTC, dual_BTC = stream
        normed: Tensor = norm(dual_BTC)
        return x_BTC + normed


@dataclass(frozen=True)
class Sandwich:
    """x + norm'(f(norm(x))): a norm on both sides of every sublayer, arXiv:2105.13290, section 2.4.

    Gemma 2 and 3 use it (arXiv:2408.00118, section 2).
    """

    post_norms: ClassVar[bool] = True
    begin, finish = staticmethod(one_stream), staticmethod(normed)

    def __call__(self, x_BTC: Tensor, sublayers: Sequence[Sublayer]) -> tuple[Tensor, Losses]:
        losses: Losses = {}
        for norm, layer, context, post_norm in sublayers:
            update_BTC, new_losses = layer(norm(x_BTC), context)
            assert post_norm is not None  # the block makes them for this scheme
            x_BTC = x_BTC + post_norm(update_BTC)
            losses |= new_losses
        return x_BTC, losses


@dataclass(frozen=True)
class Chain:
    """f(norm(x)): no residual path at all, as recurrent networks are stacked (arXiv:1308.0850)."""

    post_norms: ClassVar[bool] = False
    begin, finish = staticmethod(one_stream), staticmethod(normed)

    def __call__(self, x_BTC: Tensor, sublayers: Sequence[Sublayer]) -> tuple[Tensor, Losses]:
        losses: Losses = {}
        for norm, layer, context, _ in sublayers:
            x_BTC, new_losses = layer(norm(x_BTC), context)
            losses |= new_losses
        return x_BTC, losses
