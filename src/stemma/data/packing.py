"""The packing plan: which slices of which documents make up each sample, written down in full.

A sample has `context` places. Documents of text are laid end to end and cut every `context`
places, so nothing is cropped and only the very last sample is padded; conversations stay whole,
because half an answer without its question teaches nothing. A place is a pair (token, next token);
a document of n stored tokens has n - 1 pairs. Where a sample holds several pieces, each piece
restarts its positions and sees only itself, so a packed document trains as if it stood alone.

The plan is data (three integers a piece), not code to be rerun: a resumed run reads the same one.
"""

import hashlib
from bisect import bisect_left, insort
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from stemma.core.errors import DataError
from stemma.core.files import atomic_file, resource_error, write_text

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """Pieces in order; `first_piece[s] : first_piece[s + 1]` are those of sample s."""

    context: int
    document: Integers
    start: Integers
    length: Integers
    first_piece: Integers

    @property
    def num_samples(self) -> int:
        """Samples in one epoch."""
        return len(self.first_piece) - 1

    @property
    def num_pairs(self) -> int:
        """Places that hold a pair, over all samples."""
        return int(self.length.sum())

    @cached_property
    def pairs(self) -> Integers:
        """Places of each sample that hold a pair."""
        return np.add.reduceat(self.length, self.first_piece[:-1])

    @property
    def num_padded(self) -> int:
        """Places of one epoch that hold nothing."""
        return self.num_samples * self.context - self.num_pairs


def plan_packing(offsets: Integers, context: int) -> Plan:
    """Lay documents end to end and cut every `context` pairs.

    offsets: where each document starts in the store, and the end of the last.

    >>> plan_packing(np.array([0, 4, 8]), context=4).length   # two documents of 3 pairs
    array([3, 1, 2])
    """
    if context < 1:
        raise ValueError(f"context ({context}) must be at least 1")
    ends = np.cumsum(np.diff(offsets) - 1)
    begins = np.concatenate(([0], ends[:-1]))
    cuts = np.union1d(np.concatenate((begins, ends)), np.arange(0, ends[-1], context))
    left = cuts[:-1]
    document = np.searchsorted(ends, left, side="right")
    sample = left // context
    counts = np.bincount(sample)
    return Plan(
        context=context,
        document=document.astype(np.int64),
        start=(left - begins[document]).astype(np.int64),
        length=np.diff(cuts).astype(np.int64),
        first_piece=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
    )


def plan_whole(offsets: Integers, context: int) -> Plan:
    """Put whole documents into samples, each where it leaves the least room; none is ever cut.

    Longest first (best-fit decreasing: Johnson, 1973), equal ones in their order. Raises ValueError
    for a document of more than `context` pairs.

    >>> plan = plan_whole(np.array([0, 4, 8, 10]), context=4)  # documents of 3, 3 and 1 pairs
    >>> plan.document, plan.first_piece
    (array([0, 2, 1]), array([0, 2, 3]))
    """
    lengths = np.diff(offsets) - 1
    if lengths.max() > context:
        raise ValueError(f"a document of {lengths.max()} pairs does not fit {context} places")
    samples: list[list[int]] = []
    rooms: list[int] = []  # the rooms that some sample has left, in order
    with_room: dict[int, list[int]] = {}
    for document in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[document])
        place = bisect_left(rooms, length)
        if place < len(rooms):
            room = rooms[place]
            sample = with_room[room].pop(0)
            if not with_room[room]:
                del with_room[room]
                rooms.pop(place)
        else:
            room, sample = context, len(samples)
            samples.append([])
        samples[sample].append(document)
        left = room - length
        if left not in with_room:
            with_room[left] = []
            insort(rooms, left)
        with_room[left].append(sample)
    order = np.array([document for sample in samples for document in sample], dtype=np.int64)
    counts = [len(sample) for sample in samples]
    return Plan(
        context=context,
        document=order,
        start=np.zeros(len(order), dtype=np.int64),
        length=lengths[order].astype(np.int64),
        first_piece=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
    )


def write_plan(path: Path, plan: Plan) -> None:
    """Materialise a plan beside its store."""
    tensors = {name: getattr(plan, name) for name in ("document", "start", "length", "first_piece")}
    content = save(tensors | {"context": np.array([plan.context], dtype=np.int64)})
    with atomic_file(path) as file:
        file.write(content)
    write_text(beside(path), hashlib.sha256(content).hexdigest() + "\n")


def beside(path: Path) -> Path:
    """Where the sha256 of a plan stands."""
    return path.with_suffix(".sha256")


def require_hash(content: bytes, wanted: str) -> None:
    """Raise ValueError where bytes are not those that a sha256 was taken of."""
    if hashlib.sha256(content).hexdigest() != wanted:
        raise ValueError("the content does not match its sha256")


def read_plan(path: Path) -> Plan:
    """Read a plan back; raises DataError where the file is damaged."""
    try:
        content = path.read_bytes()
        # version 0.1 wrote none
        if beside(path).exists():
            require_hash(content, beside(path).read_text("utf-8").strip())
        tensors = load(content)
        return Plan(context=int(tensors.pop("context")[0]), **tensors)
    except OSError as error:
        raise resource_error(error, path) from error
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        fix = f"remove {path}: the stage makes it again"
        raise DataError(f"not a usable packing plan ({error})", place=path, fix=fix) from error
