"""Masks: frozen predicates of absolute positions, compared by value, combined with `&`.

A mask answers elementwise whether the query at one position sees the key at another. It knows
nothing of batches or padding: the stack adds those from the context. Because masks are values, the
stack builds each distinct one once per forward pass, whatever the number of layers. `window` is how
many positions back a mask reaches at most, the query's own among them, None for all: a cache need
keep no more.

    >>> Causal()(torch.tensor([[2]]), torch.tensor([[0], [2], [3]]).T)
    tensor([[ True,  True, False]])
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Mask(Protocol):
    """What the masks have in common."""

    @property
    def window(self) -> int | None:
        """Positions that a query can see back from its own, with its own; None for all."""

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        """True where the query at a position sees the key at another."""


@dataclass(frozen=True)
class Both:
    """Visible where both masks agree; made by `first & second`."""

    first: Mask
    second: Mask

    @property
    def ahead(self) -> int:
        return min(getattr(mask, "ahead", 0) for mask in (self.first, self.second))

    @property
    def window(self) -> int | None:
        reaches = [mask.window for mask in (self.first, self.second) if mask.window is not None]
        return min(reaches, default=None)

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        return self.first(query, key) & self.second(query, key)

    def __and__(self, other: Mask) -> "Both":
        return Both(self, other)


@dataclass(frozen=True)
class Full:
    """Every query sees every key."""

    @property
    def window(self) -> None:
        return None

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        return (query >= 0) & (key >= 0)

    def __and__(self, other: Mask) -> Both:
        return Both(self, other)


@dataclass(frozen=True)
class Causal:
    """A query sees its own position and those before it."""

    @property
    def window(self) -> None:
        return None

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        return key <= query

    def __and__(self, other: Mask) -> Both:
        return Both(self, other)


@dataclass(frozen=True)
class Window:
    """A query sees its own position and the `size - 1` before it, arXiv:2310.06825, section 2.

    Alone it is causal too: later positions are outside of it.
    """

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"a window of {self.size} positions shows nothing; at least 1")

    @property
    def window(self) -> int:
        return self.size

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key > query - self.size)

    def __and__(self, other: Mask) -> Both:
        return Both(self, other)


@dataclass(frozen=True)
class Prefix:
    """Causal, but the first `length` positions see each other whole, arXiv:1910.10683, section 3.2.

    A prefix longer than the text shows only what is there. With a cache the whole prefix must be
    read in the first pass (`ahead`): its first tokens see its last ones.
    """

    length: int

    @property
    def ahead(self) -> int:
        return self.length

    @property
    def window(self) -> None:
        return None

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) | (key < self.length)

    def __and__(self, other: Mask) -> Both:
        return Both(self, other)


@dataclass(frozen=True)
class Documents:
    """A query sees the keys of its own document; `starts` are the documents' first positions.

    For documents that follow one another at known positions. Packed samples whose positions begin
    anew go through `Context.document_ids_BT` instead.
    """

    starts: tuple[int, ...]

    @property
    def window(self) -> None:
        return None

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        starts = torch.tensor(self.starts, device=query.device)
        return self._document(query, starts) == self._document(key, starts)

    def _document(self, place: Tensor, starts: Tensor) -> Tensor:
        return torch.bucketize(place.contiguous(), starts, right=True)

    def __and__(self, other: Mask) -> Both:
        return Both(self, other)


def mask_mod(
    mask: Mask, query_positions_BT: Tensor, key_positions_BS: Tensor
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Make FlexAttention's `mask_mod(batch, head, query, key)` from a mask and its positions."""

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return mask(query_positions_BT[batch, query], key_positions_BS[batch, key])

    return visible
