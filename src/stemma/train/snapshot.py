"""What a checkpoint will hold, as it is at the end of a step, and which process writes what.

Every process tells the others which boxes of which tensors it has. What several have, as weights
that are not spread over them, one of them writes: from the largest box to the smallest, whoever has
the least to write so far. All processes come to the same division, since all know the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from stemma.core.distributed import World, together
from stemma.core.errors import DivergedError, UsageError
from stemma.train.shard import shard_name
from stemma.train.slices import Box, own_part, pieces_of

Layout = dict[str, dict[str, Any]]  # of one process: each tensor's shape, dtype and boxes


@dataclass(frozen=True)
class Snapshot:
    """The values that this process writes, by their name in its file, and all that is written."""

    tensors: dict[str, Tensor]
    entries: dict[str, dict[str, Any]]  # of the manifest, for the tensors of all processes


def take(
    tensors: Mapping[str, Any], world: World, buffers: dict[str, Tensor] | None = None
) -> Snapshot:
    """What this process is to write of tensors, some of which may be DTensors.

    With `buffers` the values are copied there, so that training may go on while they are written;
    without, they are those of the tensors where these lie in this machine's memory.

    Raises UsageError where the processes hold tensors of one name that are not parts of one.
    """
    layouts = together(world, lambda: layout_of(tensors))
    shares = shared_out(layouts)
    values: dict[str, Tensor] = {}
    entries: dict[str, dict[str, Any]] = {}
    for layout in layouts:
        for name, about in layout.items():
            if name not in entries:
                slices = named_slices(name, shares[name])
                entries[name] = {"shape": about["shape"], "dtype": about["dtype"], "slices": slices}
    for name, tensor in tensors.items():
        part = own_part(tensor).detach()
        mine = {piece.box: piece.here for piece in pieces_of(tensor)}
        for (box, rank), one in zip(shares[name].items(), entries[name]["slices"], strict=True):
            if rank == world.rank:
                key = one.get("key", name)
                values[key] = copied(part[mine[box]], key, buffers)
    if buffers is not None and any(own_part(tensor).is_cuda for tensor in tensors.values()):
        torch.cuda.synchronize()  # the copies are on their way
    return Snapshot(values, entries)


def layout_of(tensors: Mapping[str, Any]) -> Layout:
    """What this process has, as JSON."""
    return {
        name: {
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "bytes": tensor.element_size(),
            "boxes": [piece.box for piece in pieces_of(tensor)],
        }
        for name, tensor in tensors.items()
    }


def shared_out(layouts: list[Layout]) -> dict[str, dict[Box, int]]:
    """Which process writes each box of each tensor, in the order of the boxes.

    Raises UsageError where shapes or types differ, or the boxes do not make up the whole.
    """
    holders: dict[tuple[str, Box], list[int]] = {}
    about: dict[str, dict[str, Any]] = {}
    for rank, layout in enumerate(layouts):
        for name, told in layout.items():
            known = about.setdefault(name, told)
            if [known[key] for key in ("shape", "dtype")] != [told["shape"], told["dtype"]]:
                what = f"{known['shape']} {known['dtype']}, and {told['shape']} {told['dtype']}"
                what = f"processes hold different tensors of this name ({what} at rank {rank})"
                raise UsageError(what, place=f"checkpoint: {name}", fix="name them apart")
            for start, shape in told["boxes"]:
                holders.setdefault((name, (tuple(start), tuple(shape))), []).append(rank)
    load = [0] * len(layouts)
    shares: dict[str, dict[Box, int]] = {name: {} for name in about}
    sizes = {key: prod(key[1][1]) * about[key[0]]["bytes"] for key in holders}
    for key in sorted(holders, key=lambda key: (-sizes[key], key)):
        rank = min(holders[key], key=lambda rank: (load[rank], rank))
        load[rank] += sizes[key]
        shares[key[0]][key[1]] = rank
    for name, boxes in shares.items():
        found, wanted = sum(prod(shape) for _, shape in boxes), prod(about[name]["shape"])
        if found != wanted:
            what = f"the parts that processes hold have {found} values, the whole {wanted}"
            raise UsageError(what, place=f"checkpoint: {name}", fix="this layout cannot be saved")
    return {name: dict(sorted(boxes.items())) for name, boxes in shares.items()}


def named_slices(name: str, boxes: Mapping[Box, int]) -> list[dict[str, Any]]:
    """The slices of a tensor as the manifest lists them.

    A process with several boxes of a tensor numbers them in its file: `key` is their name there.
    """
    written = list(boxes.values())
    slices = []
    for number, ((start, shape), rank) in enumerate(boxes.items()):
        one = {"file": shard_name(rank), "start": list(start), "shape": list(shape)}
        if written.count(rank) > 1:
            one["key"] = f"{name}#{number}"
        slices.append(one)
    return slices


def copied(part: Tensor, key: str, buffers: dict[str, Tensor] | None) -> Tensor:
    """Values in this machine's memory; with `buffers` in one of those, used again at each save."""
    if buffers is None:
        return part.to("cpu").contiguous()
    held = buffers.get(key)
    if held is None or held.shape != part.shape or held.dtype != part.dtype:
        held = torch.empty(part.shape, dtype=part.dtype, pin_memory=part.is_cuda)
        buffers[key] = held
    return held.copy_(part, non_blocking=True)


def require_finite(tensors: Mapping[str, Tensor], step: int) -> None:
    """Refuse to write a state that no training can go on from (DivergedError).

    A sum tells of a sound tensor that it is one: what is not finite stays so in a sum.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or bool(tensor.sum(dtype=torch.float32).isfinite()):
            continue
        if not bool(tensor.isfinite().all()):
            what = f"after step {step} values of {name} are not finite"
            raise DivergedError(what, fix="lower learning_rate, or lengthen the warm-up")
