"""Key-value caches for decoding, preallocated, with ragged batches.

All rows of a batch write the same slots; a row's padding takes a slot too, but with position -1,
which no mask ever shows. So a batch of prompts of different lengths needs neither copies nor
one cache per row, and padding may stand on either side.

Axes: B batch, S slots, T new tokens, G key-value heads, D width of one head
"""

import torch
from torch import Tensor


class LayerCache:
    """Keys and values of one layer: (B, G, S, D) each, allocated once."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    def add(self, key_BGTD: Tensor, value_BGTD: Tensor) -> tuple[Tensor, Tensor]:
        """Append new keys and values; return all so far, as views of the cache.

        Raises ValueError where the capacity is exceeded.
        """
        start, end = self.length, self.length + key_BGTD.shape[2]
        if end > self.capacity:
            raise ValueError(f"cache of {self.capacity} slots cannot hold {end} tokens")
        if self.key is None or self.value is None:
            shape = (*key_BGTD.shape[:2], self.capacity)
            self.key = key_BGTD.new_empty(*shape, key_BGTD.shape[3])
            self.value = value_BGTD.new_empty(*shape, value_BGTD.shape[3])
        self.key[:, :, start:end] = key_BGTD
        self.value[:, :, start:end] = value_BGTD
        self.length = end
        return self.key[:, :, :end], self.value[:, :, :end]

    def select(self, rows: Tensor) -> None:
        """Keep only these rows of the batch, in this order (finished rows leave the batch)."""
        if self.key is not None and self.value is not None:
            self.key, self.value = self._rows(self.key, rows), self._rows(self.value, rows)

    def _rows(self, old_BGSD: Tensor, rows: Tensor) -> Tensor:
        # only what is in use is copied: the rest of a long capacity is memory never touched
        new_BGSD = old_BGSD.new_empty(len(rows), *old_BGSD.shape[1:])
        new_BGSD[:, :, : self.length] = old_BGSD[:, :, : self.length][rows]
        return new_BGSD


class Cache:
    """The caches of a stack by layer index, and the absolute position of every slot.

    `ragged` is true once any row differs from "position = slot": then masks must be built from
    `positions_BS`; otherwise a single new token sees every slot and needs no mask.
    """

    def __init__(self, depth: int, capacity: int) -> None:
        self.layers = [LayerCache(capacity) for _ in range(depth)]
        self.capacity = capacity
        self.positions_BS: Tensor | None = None
        self.ragged = False

    @property
    def length(self) -> int:
        """Slots in use, the same in every row."""
        return 0 if self.positions_BS is None else self.positions_BS.shape[1]

    def extend(self, positions_BT: Tensor, *, ragged: bool) -> Tensor:
        """Give the next slots their positions; returns the positions of all slots (B, S)."""
        past = self.positions_BS
        if past is not None:
            rows = max(len(past), len(positions_BT))
            past = past.expand(rows, -1)
            positions_BT = torch.cat((past, positions_BT.expand(rows, -1)), dim=1)
        self.positions_BS = positions_BT
        self.ragged = self.ragged or ragged
        return positions_BT

    def select(self, rows: Tensor) -> None:
        """Keep only these rows of the batch, in this order."""
        if self.positions_BS is not None and len(self.positions_BS) > 1:
            self.positions_BS = self.positions_BS[rows]
        for layer in self.layers:
            layer.select(rows)
