"""Reads tensors of a checkpoint, or boxes of them, from the slices that its files hold.

A process that needs a part of a tensor reads what meets that part and nothing else, whatever the
processes were that wrote it.
"""

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stemma.core.errors import ModelError
from stemma.train.slices import is_spread, own_part, pieces_of

AGAIN = "remove this checkpoint to go on from an older one"


def overlap(
    start: Sequence[int], shape: Sequence[int], other: Sequence[int], other_shape: Sequence[int]
) -> list[tuple[int, int]] | None:
    """Where two boxes meet, as (from, to) per axis in global coordinates; None where they don't."""
    ranges = [
        (max(a, b), min(a + n, b + m))
        for a, n, b, m in zip(start, shape, other, other_shape, strict=True)
    ]
    return None if any(low >= high for low, high in ranges) else ranges


class Reader:
    """The tensors of a checkpoint's folder as its manifest tells them; each file is opened once."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self._files: dict[str, Any] = {}

    def shape(self, name: str) -> list[int]:
        """Shape of a whole tensor. Raises ModelError where there is none of the name."""
        return list(self._about(name)["shape"])

    def read(
        self, name: str, *, start: Sequence[int] | None = None, shape: Sequence[int] | None = None
    ) -> Tensor:
        """A tensor, or the box of it at `start` with `shape`.

        Raises ModelError where the slices do not cover it.
        """
        about = self._about(name)
        start = [0] * len(about["shape"]) if start is None else start
        shape = about["shape"] if shape is None else shape
        result = torch.empty(list(shape), dtype=getattr(torch, about["dtype"]))
        met = [
            (piece, box)
            for piece in about["slices"]
            if (box := overlap(start, shape, piece["start"], piece["shape"])) is not None
        ]
        # one slice that has all of it needs no count of what is covered
        whole = len(met) == 1 and prod(b - a for a, b in met[0][1]) == result.numel()
        filled = None if whole else torch.zeros(list(shape), dtype=torch.bool)
        for piece, box in met:
            here = tuple(slice(a - o, b - o) for (a, b), o in zip(box, start, strict=True))
            result[here] = self._part(name, piece, box)
            if filled is not None:
                filled[here] = True
        if filled is not None and not filled.all():
            what = f"slices cover {int(filled.sum())} of {result.numel()} values"
            raise ModelError(what, place=f"{self.folder}: {name}", fix=AGAIN)
        return result

    @torch.no_grad()
    def fill(self, name: str, target: Any) -> None:
        """Put a tensor into another of its shape, plain or a DTensor: there this process's part.

        Raises ModelError where the shapes differ.
        """
        shape = self.shape(name)
        if shape != list(target.shape):
            what = f"shape {shape} stored, {list(target.shape)} wanted"
            raise ModelError(what, place=f"{self.folder}: {name}", fix=AGAIN)
        part = own_part(target)
        for piece in pieces_of(target):
            part[piece.here] = self.read(name, start=piece.start, shape=piece.shape).to(part.device)

    def read_like(self, name: str, parameter: Any) -> Tensor:
        """The state that an optimizer keeps of a parameter, on its device.

        Spread over processes as the parameter is, where it has the parameter's shape; else whole.
        """
        if is_spread(parameter) and self.shape(name) == list(parameter.shape):
            dtype = getattr(torch, self._about(name)["dtype"])
            state = torch.empty_like(parameter, dtype=dtype, requires_grad=False)
            self.fill(name, state)
            return state
        # on the parameter's device, a step count too: the fused kernel wants it there
        return self.read(name).to(parameter.device)

    def _about(self, name: str) -> dict[str, Any]:
        about: dict[str, Any] | None = self.manifest["tensors"].get(name)
        if about is None:
            raise ModelError("tensor is missing", place=f"{self.folder}: {name}", fix=AGAIN)
        return about

    def _part(self, name: str, piece: dict[str, Any], box: list[tuple[int, int]]) -> Tensor:
        """The box of a tensor that a slice has, without the rest of the slice."""
        if piece["file"] not in self.manifest["files"]:
            what = f"lies in {piece['file']!r:.60}, which the manifest does not vouch for"
            raise ModelError(what, place=f"{self.folder}: {name}", fix=AGAIN)
        key = piece.get("key", name)
        there = tuple(slice(a - o, b - o) for (a, b), o in zip(box, piece["start"], strict=True))
        try:
            file = self._open(piece["file"])
            if [axis.stop - axis.start for axis in there] == list(piece["shape"]):
                part: Tensor = file.get_tensor(key)
            else:
                part = file.get_slice(key)[there]
        except SafetensorError as error:
            what, place = f"not as the manifest tells ({error})", self.folder / piece["file"]
            raise ModelError(what, place=f"{place}: {name}", fix=AGAIN) from error
        return part

    def _open(self, name: str) -> Any:
        if name not in self._files:
            self._files[name] = safe_open(self.folder / name, framework="pt")
        return self._files[name]
