"""Masks: frozen predicates of absolute positions, compared by value, combined with `&`.

A mask answers elementwise whether the query at one position sees the key at another. It knows
nothing of batches, documents or padding: the stack adds those from the context. Because masks are
values, the stack builds each distinct one once per forward pass, whatever the number of layers.

    >>> Causal()(torch.tensor([[2]]), torch.tensor([[0], [2], [3]]).T)
    tensor([[ True,  True, False]])
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Mask = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Both:
    """Visible where both masks agree; made by `first & second`."""

    first: Mask
    second: Mask

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        return self.first(query, key) & self.second(query, key)

    def __and__(self, other: Mask) -> "Both":
        return Both(self, other)


@dataclass(frozen=True)
class Full:
    """Every query sees every key."""

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        return (query >= 0) & (key >= 0)

    def __and__(self, other: Mask) -> Both:
        return Both(self, other)


@dataclass(frozen=True)
class Causal:
    """A query sees its own position and those before it."""

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        return key <= query

    def __and__(self, other: Mask) -> Both:
        return Both(self, other)


def mask_mod(
    mask: Mask, query_positions_BT: Tensor, key_positions_BS: Tensor
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Make FlexAttention's `mask_mod(batch, head, query, key)` from a mask and its positions."""

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return mask(query_positions_BT[batch, query], key_positions_BS[batch, key])

    return visible
