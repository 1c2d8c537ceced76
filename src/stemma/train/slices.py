"""Which part of a tensor a process holds, as boxes in the coordinates of the whole.

A tensor that is spread over processes is a `DTensor`: a mesh of processes and, for each axis of the
mesh, a placement. `Shard(axis)` cuts an axis of the tensor into as many chunks as that axis of the
mesh has processes, as `torch.chunk` does: all but the last are equally long, some may be empty.
Placements apply from left to right, each to what the one before left. FSDP2 over tensor parallel
cuts by the right axis first and by the left one within its chunks; torch writes this as
`_StridedShard(axis, split_factor)`: cut into `split_factor` chunks, cut each of these, and take
every part of one's number. What a process then holds of an axis may be several runs of positions
rather than one, and of a tensor several boxes: the product of the runs of its axes.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from typing import Any

from torch import Tensor

from stemma.core.errors import UsageError

Run = tuple[int, int]  # first position in the whole axis, number of positions
Box = tuple[tuple[int, ...], tuple[int, ...]]  # start and shape, in coordinates of the whole


@dataclass(frozen=True)
class Piece:
    """A box of a tensor that a process holds: where in the whole, and where in its own part."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    local: tuple[int, ...]

    @property
    def box(self) -> Box:
        """Where in the whole."""
        return self.start, self.shape

    @property
    def here(self) -> tuple[slice, ...]:
        """Its place in the process's own part, as an index."""
        return tuple(slice(at, at + n) for at, n in zip(self.local, self.shape, strict=True))


def is_spread(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor. Their module takes a second to import, so it is not here."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def own_part(tensor: Any) -> Tensor:
    """The values that this process holds, which share the memory of the tensor."""
    part: Tensor = tensor.to_local() if is_spread(tensor) else tensor
    return part


def pieces_of(tensor: Any) -> list[Piece]:
    """The boxes of a tensor that this process holds; a plain tensor is one, the whole.

    Raises UsageError for a placement that has no boxes, as a sum that is not made yet.
    """
    shape = tuple(tensor.shape)
    if not is_spread(tensor):
        return [Piece((0,) * len(shape), shape, (0,) * len(shape))]
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None:  # this process is not in the mesh
        return []
    runs: list[list[Run]] = [[(0, length)] if length else [] for length in shape]
    for placement, number, count in zip(
        tensor.placements, coordinate, tensor.device_mesh.shape, strict=True
    ):
        if placement.is_replicate():
            continue
        if placement.is_partial() or not hasattr(placement, "dim"):
            what = f"a tensor placed as {placement} has no values that could be saved"
            raise UsageError(what, place="checkpoint", fix="reduce it before it is saved")
        strides = getattr(placement, "split_factor", 1)
        runs[placement.dim] = part_of(runs[placement.dim], strides, count, number)
    found = tuple(sum(length for _, length in axis) for axis in runs)
    held = tuple(own_part(tensor).shape)
    if 0 not in found and found != held:
        what = f"placements {tensor.placements} give shape {list(found)}, torch {list(held)}"
        raise UsageError(what, place="checkpoint", fix="this layout cannot be saved")
    return boxes_of(runs)


def part_of(runs: list[Run], strides: int, count: int, number: int) -> list[Run]:
    """What part `number` of `count` has of an axis, cut within each of `strides` chunks of it.

    >>> part_of([(0, 8)], 2, 2, 1)  # chunks 0-3 and 4-7, and the second half of each
    [(2, 2), (6, 2)]
    """
    chunks = [chunk(runs, strides, one) for one in range(strides)]
    return joined([run for part in chunks for run in chunk(part, count, number)])


def chunk(runs: Sequence[Run], count: int, number: int) -> list[Run]:
    """Chunk `number` of `count`, as `torch.chunk` cuts the positions of the runs.

    >>> chunk([(0, 3), (10, 2)], 2, 0), chunk([(0, 3), (10, 2)], 2, 1)
    ([(0, 3)], [(10, 2)])
    """
    size = -(-sum(length for _, length in runs) // count)
    low, high, reached, found = number * size, (number + 1) * size, 0, []
    for start, length in runs:
        begin, end = max(low - reached, 0), min(high - reached, length)
        if begin < end:
            found.append((start + begin, end - begin))
        reached += length
    return found


def joined(runs: Sequence[Run]) -> list[Run]:
    """The same runs, neighbours made one."""
    found: list[Run] = []
    for start, length in runs:
        if found and sum(found[-1]) == start:
            found[-1] = (found[-1][0], found[-1][1] + length)
        else:
            found.append((start, length))
    return found


def boxes_of(runs: Sequence[Sequence[Run]]) -> list[Piece]:
    """The boxes that the runs of all axes make; none where an axis has none."""
    placed = [
        list(zip(axis, accumulate((n for _, n in axis), initial=0), strict=False)) for axis in runs
    ]
    return [
        Piece(
            tuple(start for (start, _), _ in chosen),
            tuple(length for (_, length), _ in chosen),
            tuple(at for _, at in chosen),
        )
        for chosen in product(*placed)
    ]
