"""The packing plan: which slices of which documents make up each sample, written down in full.

A sample has `context` places. Documents are laid end to end and cut every `context` places, so
nothing is cropped and only the very last sample is padded. A place is a pair (token, next token);
a document of n stored tokens has n - 1 pairs. Where a sample holds several pieces, each piece
restarts its positions and sees only itself, so a packed document trains as if it stood alone.

The plan is data (three integers a piece), not code to be rerun: a resumed run reads the same one.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from stemma.core.errors import DataError
from stemma.core.files import atomic_file

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


def write_plan(path: Path, plan: Plan) -> None:
    """Materialise a plan beside its store."""
    tensors = {name: getattr(plan, name) for name in ("document", "start", "length", "first_piece")}
    with atomic_file(path) as file:
        file.write(save(tensors | {"context": np.array([plan.context], dtype=np.int64)}))


def read_plan(path: Path) -> Plan:
    """Read a plan back; raises DataError where the file is damaged."""
    try:
        tensors = load_file(path)
        return Plan(context=int(tensors.pop("context")[0]), **tensors)
    except (OSError, KeyError, TypeError, ValueError) as error:
        fix = "run the stage again with --fresh"
        raise DataError(f"not a usable packing plan ({error})", place=path, fix=fix) from error
