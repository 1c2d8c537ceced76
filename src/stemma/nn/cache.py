"""What decoding keeps between passes: keys and values, windows of them, recurrent states.

All rows of a batch write the same slots; a row's padding takes a slot too, but with position -1,
which no mask ever shows. So a batch of prompts of different lengths needs neither copies nor
one cache per row, and padding may stand on either side.

A layer that sees a window keeps the slots of its window alone: its memory is flat, however long
the text. Its keys carry absolute positions, so the mask decides who is seen, not the slot's place.

Axes: B batch, S slots, T new tokens, G key-value heads, D width of one head
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

SPARE = 16  # free slots behind a window, at least: it moves to the front once they are full


class State(Protocol):
    """What one layer keeps. Rows can be chosen: finished ones leave, those of a beam are copied."""

    def select(self, rows: Tensor) -> None:
        """Keep only these rows of the batch, in this order."""

    def fork(self, slots: Mapping[int | None, "Slots"]) -> "State":
        """A copy that goes on by itself, on slots of its own."""


class Slots:
    """The positions of the slots that layers with one window share; `window` None keeps all.

    `holes` is how many slots inside a row are padding: a window counts tokens, so that many more
    slots must be kept for it. `kept` of the slots before a pass and all new ones are visible in it.
    """

    def __init__(self, capacity: int, window: int | None) -> None:
        self.capacity, self.window = capacity, window
        self.holes = self.kept = 0
        self.positions_BS: Tensor | None = None

    def extend(self, positions_BT: Tensor, *, ragged: bool) -> Tensor:
        """Give the next slots their positions; returns those of all visible slots (B, S)."""
        past_BS = self.positions_BS
        if past_BS is not None:
            rows = max(len(past_BS), len(positions_BT))
            past_BS, positions_BT = past_BS.expand(rows, -1), positions_BT.expand(rows, -1)
            if self.window is not None:
                self.holes = self._count_holes(past_BS) if ragged else self.holes
                past_BS = past_BS[:, max(0, past_BS.shape[1] - self.window - self.holes + 1) :]
            positions_BT = torch.cat((past_BS, positions_BT), dim=1)
            self.kept = past_BS.shape[1]
        self.positions_BS = positions_BT
        return positions_BT

    def _count_holes(self, positions_BS: Tensor) -> int:
        """Padding between and behind the last `window - 1` tokens of a row, at most over the rows.

        A row that pauses may go on, so the tokens that it will then see are kept until it leaves.
        """
        assert self.window is not None
        real_BS = positions_BS >= 0
        later_BS = real_BS.flip(1).cumsum(1).flip(1)  # tokens from here to the end
        begun_BS = real_BS.cummax(dim=1).values
        holes_BS = ~real_BS & begun_BS & (later_BS < self.window)
        return int(holes_BS.sum(1).max()) if holes_BS.numel() else 0

    def select(self, rows: Tensor) -> None:
        """Keep only these rows of the batch, in this order."""
        if self.positions_BS is not None and len(self.positions_BS) > 1:
            self.positions_BS = self.positions_BS[rows]
            if self.holes:
                self.holes = self._count_holes(self.positions_BS)

    def fork(self) -> "Slots":
        """The same slots again, to be extended on their own."""
        twin = Slots(self.capacity, self.window)
        twin.holes, twin.kept, twin.positions_BS = self.holes, self.kept, self.positions_BS
        return twin


class LayerCache:
    """Keys and values of one layer: (B, G, S, D) each, allocated once without a window."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.start = self.end = 0
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    def add(self, key_BGTD: Tensor, value_BGTD: Tensor) -> tuple[Tensor, Tensor]:
        """Append new keys and values; return the visible ones, as views of the cache."""
        new = key_BGTD.shape[2]
        self.start = self.end - self.slots.kept
        if self.key is None or self.value is None or self.end + new > self.key.shape[2]:
            self._make_room(key_BGTD, value_BGTD)
        assert self.key is not None and self.value is not None
        end = self.end + new
        self.key[:, :, self.end : end] = key_BGTD
        self.value[:, :, self.end : end] = value_BGTD
        self.end = end
        return self.key[:, :, self.start : end], self.value[:, :, self.start : end]

    def _make_room(self, key_BGTD: Tensor, value_BGTD: Tensor) -> None:
        """Allocate, or move what a window still shows to the front of a buffer of its own."""
        slots, kept, new = self.slots, self.end - self.start, key_BGTD.shape[2]
        size = slots.capacity
        if slots.window is not None:
            size = min(kept + new + max(SPARE, slots.window // 4), max(size, kept + new))
        old = self.key, self.value
        self.key = key_BGTD.new_empty(*key_BGTD.shape[:2], size, key_BGTD.shape[3])
        self.value = value_BGTD.new_empty(*value_BGTD.shape[:2], size, value_BGTD.shape[3])
        if old[0] is not None and old[1] is not None:
            self.key[:, :, :kept] = old[0][:, :, self.start : self.end]
            self.value[:, :, :kept] = old[1][:, :, self.start : self.end]
        self.start, self.end = 0, kept

    def select(self, rows: Tensor) -> None:
        """Keep only these rows of the batch, in this order (finished rows leave the batch)."""
        if self.key is not None and self.value is not None:
            self.key, self.value = self._rows(self.key, rows), self._rows(self.value, rows)

    def _rows(self, old_BGSD: Tensor, rows: Tensor) -> Tensor:
        # only what is in use is copied: the rest of a long capacity is memory never touched
        new_BGSD = old_BGSD.new_empty(len(rows), *old_BGSD.shape[1:])
        new_BGSD[:, :, : self.end] = old_BGSD[:, :, : self.end][rows]
        return new_BGSD

    def fork(self, slots: Mapping[int | None, Slots]) -> "LayerCache":
        """A copy that goes on by itself, on slots of its own."""
        twin = LayerCache(slots[self.slots.window])
        twin.start, twin.end = self.start, self.end
        twin.key = None if self.key is None else self.key.clone()
        twin.value = None if self.value is None else self.value.clone()
        return twin

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return bytes_of(self.key, self.value)


class TensorState:
    """Named tensors with the batch first: a recurrent state, or keys of a memory; empty at first.

    A layer reads what it left there with `get`, None before the first pass, and leaves with `put`.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def get(self, name: str) -> Tensor | None:
        """The tensor that the last pass left, None before the first."""
        return self.tensors.get(name)

    def put(self, **tensors: Tensor) -> None:
        """Leave tensors (B, …) for the next pass."""
        self.tensors.update(tensors)

    def select(self, rows: Tensor) -> None:
        """Keep only these rows of the batch, in this order."""
        self.tensors = {name: tensor[rows] for name, tensor in self.tensors.items()}

    def fork(self, slots: Mapping[int | None, Slots]) -> "TensorState":
        """A copy; what is left in it later does not reach this one."""
        twin = TensorState()
        twin.tensors = {name: tensor.clone() for name, tensor in self.tensors.items()}
        return twin

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return bytes_of(*self.tensors.values())


def bytes_of(*tensors: Tensor | None) -> int:
    """Bytes that tensors take, nothing for those that are None."""
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


class Cache:
    """The states of a stack by layer index and sublayer name, and the positions of their slots.

    `ragged` is true once any row differs from "position = slot": then masks must be built from
    positions; otherwise a single new token sees every slot and needs no mask. `length` counts the
    tokens of all passes. `slots` has the positions by window, None for layers that keep all.
    """

    def __init__(
        self,
        layers: Sequence[Mapping[str, State]],
        slots: Mapping[int | None, Slots],
        capacity: int,
    ) -> None:
        self.layers, self.slots, self.capacity = list(layers), dict(slots), capacity
        self.length = 0
        self.ragged = False

    def extend(self, positions_BT: Tensor, *, ragged: bool) -> dict[int | None, Tensor]:
        """Give the next slots their positions; returns those of all visible slots by window.

        Raises ValueError, with nothing changed, where the capacity is exceeded.
        """
        length = self.length + positions_BT.shape[1]
        if length > self.capacity:
            raise ValueError(f"cache of {self.capacity} slots cannot hold {length} tokens")
        self.length += positions_BT.shape[1]
        self.ragged = self.ragged or ragged
        return {
            window: slots.extend(positions_BT, ragged=ragged)
            for window, slots in self.slots.items()
        }

    def select(self, rows: Tensor) -> None:
        """Keep only these rows of the batch, in this order."""
        for slots in self.slots.values():
            slots.select(rows)
        for states in self.layers:
            for state in states.values():
                state.select(rows)

    def fork(self) -> "Cache":
        """A copy that goes on by itself: what was read once is the prefix of several texts."""
        slots = {window: each.fork() for window, each in self.slots.items()}
        layers = [
            {name: state.fork(slots) for name, state in states.items()} for states in self.layers
        ]
        twin = Cache(layers, slots, self.capacity)
        twin.length, twin.ragged = self.length, self.ragged
        return twin

    @property
    def nbytes(self) -> int:
        """Bytes of all layers' states."""
        return sum(getattr(state, "nbytes", 0) for each in self.layers for state in each.values())
