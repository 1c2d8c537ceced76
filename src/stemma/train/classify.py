"""Classification: a label for a text or a pair of texts (BERT, arXiv:1810.04805, section 4.1).

The first token's last state is pooled and scored; the loss is - log softmax(C W^T) of the right
label, summed over the texts. Several texts stand in a row and see only themselves, so a row has as
many targets as it has texts, each at the text's first place.

Axes: B rows, T places of a row, N texts, C model width, L labels
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from numpy import int64
from numpy.typing import NDArray
from torch import Tensor

from stemma.data.ahead import ahead
from stemma.data.batches import Batch, Order
from stemma.data.marked import Marks, labelled_batch
from stemma.data.packing import Plan
from stemma.data.store import TokenStore
from stemma.nn.context import Context
from stemma.nn.residual import Losses
from stemma.train.pretrain import at_targets, pushed_by, tensor

Integers = NDArray[int64]


@dataclass(frozen=True)
class LabelledBatch:
    """Rows of texts, the label of each as the target of its first place, and the segments."""

    rows: Batch
    segments_BT: Integers

    @property
    def counted(self) -> int:
        """Texts that count in the loss."""
        return self.rows.counted

    def split(self, rows: int) -> Iterator["LabelledBatch"]:
        """Cut into micro-batches of at most `rows` rows; the last may be smaller."""
        for number, part in enumerate(self.rows.split(rows)):
            yield LabelledBatch(part, self.segments_BT[number * rows : (number + 1) * rows])


def labelled(store: TokenStore, plan: Plan, samples_B: Integers, marks: Marks) -> LabelledBatch:
    """The rows of some samples of a store of labelled texts."""
    return LabelledBatch(*labelled_batch(store, plan, samples_B, marks))


def windows_with(
    marks: Marks,
) -> Callable[..., Generator[list[LabelledBatch], None, None]]:
    """What makes the micro-batches of each step, for the loop."""

    def windows(
        store: TokenStore, order: Order, *, first_step: int, steps: int, rows: int, workers: int = 0
    ) -> Generator[list[LabelledBatch], None, None]:
        def window(step: int) -> list[LabelledBatch]:
            return list(labelled(store, order.plan, order.samples(step), marks).split(rows))

        return ahead(window, range(first_step, steps), workers=workers)

    return windows


def label_loss(model: Any, batch: LabelledBatch) -> Tensor:
    """Cross entropy in nats, summed over the texts; auxiliary losses push along."""
    scores_NL, targets_N, auxiliary = _scored(model, batch)
    loss = F.cross_entropy(scores_NL, targets_N, reduction="sum")
    return pushed_by(auxiliary, loss, counted=batch.counted)


def label_scores(model: Any, batch: LabelledBatch) -> tuple[Tensor, Tensor]:
    """Scores of every label for each text (N, L), and the right label (N,), in the rows' order."""
    scores_NL, targets_N, _ = _scored(model, batch)
    return scores_NL, targets_N


def _scored(model: Any, batch: LabelledBatch) -> tuple[Tensor, Tensor, Losses]:
    """The same, and the auxiliary losses of the pass."""
    device = model.embedding.weight.device
    x_BTC, auxiliary = model.hidden(tensor(batch.rows.tokens_BT, device), seen(batch, device))
    x_NC, targets_N = at_targets(x_BTC, batch.rows.targets_BT)
    # as many rows of one token: pooling takes the first
    scores_NL = model.classify(x_NC[:, None])
    return scores_NL.float(), targets_N, auxiliary


def seen(batch: LabelledBatch, device: torch.device) -> Context:
    """Segments, and where rows hold several texts or padding also positions and texts."""
    rows, segments_BT = batch.rows, tensor(batch.segments_BT, device)
    if rows.positions_BT is None or rows.documents_BT is None:
        return Context(segments_BT=segments_BT)
    return Context(
        positions_BT=tensor(rows.positions_BT, device),
        document_ids_BT=tensor(rows.documents_BT, device),
        segments_BT=segments_BT,
    )
