"""Supervised fine-tuning: predict the assistant's turns (arXiv:2203.02155, section 3.5, "SFT").

The loss is that of pretraining over the tokens of the assistant alone, its end-of-turn included:
- sum over those tokens of log p(token | everything before it). What the others say is read and not
learned. Which tokens count stands in the store beside their ids; padding is told by lengths.

Axes: B samples, T places of a sample, N counted places, C model width, V vocabulary
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from stemma.data.batches import IGNORED, Batch
from stemma.nn.residual import Losses
from stemma.train.pretrain import context_of, pushed_by, tensor


def assistant_loss(model: Any, batch: Batch) -> Tensor:
    """Cross entropy in nats, summed over the assistant's tokens; auxiliary losses push along.

    Scores over the vocabulary are computed where they count only: most of the memory of a small
    model with a large vocabulary goes there.
    """
    losses_N, _, auxiliary = _scored(model, batch)
    return pushed_by(auxiliary, losses_N.sum(), counted=batch.counted)


def counted_losses(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross entropy in nats of each counted place (N,), and the row that it stands in (N,)."""
    losses_N, rows_N, _ = _scored(model, batch)
    return losses_N, rows_N


def _scored(model: Any, batch: Batch) -> tuple[Tensor, Tensor, Losses]:
    """The same, and the auxiliary losses of the pass."""
    device = model.embedding.weight.device
    targets_BT = tensor(batch.targets_BT, device)
    counts_BT = targets_BT != IGNORED
    x_BTC, auxiliary = model.hidden(tensor(batch.tokens_BT, device), context_of(batch, device))
    logits_NV = model.logits(x_BTC[counts_BT]).float()
    losses_N = F.cross_entropy(logits_NV, targets_BT[counts_BT], reduction="none")
    return losses_N, counts_BT.nonzero()[:, 0], auxiliary
