"""Batches: a pure function of the step, from a store, a plan and a seed.

Nothing here remembers where it was. Asking twice for the batch of step 500 gives the same batch,
in this process or another, so a resumed run needs only the number of the step it has consumed.

Axes: B samples, T places of a sample
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stemma.data.order import samples_of
from stemma.data.packing import Plan
from stemma.data.store import TokenStore

IGNORED = -100  # target of a place that does not count; the default of torch's cross entropy

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Rows of tokens and what each place should predict.

    `positions_BT` and `documents_BT` are None where every row is one unbroken piece: then plain
    causal attention is exact and fast.
    """

    tokens_BT: Integers
    targets_BT: Integers
    positions_BT: Integers | None
    documents_BT: Integers | None
    samples_B: Integers

    @property
    def counted(self) -> int:
        """Places that count in the loss."""
        return int((self.targets_BT != IGNORED).sum())

    def split(self, rows: int) -> Iterator["Batch"]:
        """Cut into micro-batches of at most `rows` rows; the last may be smaller."""
        for start in range(0, len(self.tokens_BT), rows):
            cut = slice(start, start + rows)
            values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
            part: dict[str, Any] = {k: None if v is None else v[cut] for k, v in values.items()}
            yield Batch(**part)


def build_batch(store: TokenStore, plan: Plan, samples_B: Integers, *, padding: int = 0) -> Batch:
    """Fill rows from the plan's pieces. Places without a pair get `padding` and do not count.

    What is padding is told by the lengths of the pieces and never by an id: in many chat models the
    padding token also ends a turn.
    """
    shape = (len(samples_B), plan.context)
    tokens, targets = np.full(shape, padding, np.int64), np.full(shape, IGNORED, np.int64)
    positions, documents = np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
    several = False
    for row, sample in enumerate(samples_B):
        first, last = plan.first_piece[sample], plan.first_piece[sample + 1]
        several = several or last - first > 1
        place = 0
        for piece in range(first, last):
            start, length = plan.start[piece], int(plan.length[piece])
            document, stop = int(plan.document[piece]), start + length
            cut = slice(place, place + length)
            tokens[row, cut] = store.document(document)[start:stop]
            targets[row, cut] = store.targets(document, start + 1, stop + 1, ignored=IGNORED)
            positions[row, cut], documents[row, cut] = np.arange(length), piece - first
            place += length
    if several:
        return Batch(tokens, targets, positions, documents, samples_B)
    return Batch(tokens, targets, None, None, samples_B)


@dataclass(frozen=True)
class Order:
    """The endless run over a plan: which samples each step takes, epoch after epoch.

    Of the plan only `num_samples` is asked. Where several processes share a step, each has the
    order of its part: together they take the samples that one would take alone.
    """

    plan: Any
    seed: int
    batch_size: int
    part: int = 0
    parts: int = 1

    def samples(self, step: int) -> Integers:
        """The samples of a step, or of this part of it, numbered from 0."""
        return self.places(step)[1]

    def places(self, step: int) -> tuple[Integers, Integers]:
        """The epochs and the samples of a step, or of this part of it."""
        rows = self.batch_size // self.parts
        first = step * self.batch_size + self.part * rows
        return samples_of(first, rows, self.plan.num_samples, seed=self.seed)

    def of_part(self, part: int, parts: int) -> "Order":
        """The order of one process among several; `parts` divides the batch."""
        return replace(self, part=part, parts=parts)
