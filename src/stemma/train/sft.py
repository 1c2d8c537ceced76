"""Supervised fine-tuning: predict the assistant's turns (arXiv:2203.02155, section 3.5, "SFT").

The loss is that of pretraining over the tokens of the assistant alone, its end-of-turn included:
- sum over those tokens of log p(token | everything before it). What the others say is read and not
learned. Which tokens count stands in the store beside their ids; padding is told by lengths.

Axes: B samples, T places of a sample, N counted places, C model width
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from stemma.data.batches import IGNORED, Batch
from stemma.nn.residual import Losses
from stemma.train.linear_loss import Measure, linear_loss
from stemma.train.loop import Parts
from stemma.train.pretrain import at_targets, context_of, parts, pushed_by, tensor


def assistant_loss(model: Any, batch: Batch) -> Tensor:
    """Cross entropy in nats, summed over the assistant's tokens; auxiliary losses push along.

    Scores over the vocabulary are computed where they count only: most of the memory of a small
    model with a large vocabulary goes there.
    """
    return assistant_parts(model, batch).loss


def assistant_parts(model: Any, batch: Batch, *, z_loss: float = 0.0) -> Parts:
    """The same, with a z loss of this weight that pushes along and is told apart."""
    x_NC, targets_N, _, auxiliary = _counted(model, batch)
    found = linear_loss(model, x_NC, targets_N, Measure(z_loss=z_loss))
    return parts(pushed_by(auxiliary, found.loss, counted=batch.counted), found.z, z_loss)


def counted_losses(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross entropy in nats of each counted place (N,), and the row that it stands in (N,)."""
    x_NC, targets_N, rows_N, _ = _counted(model, batch)
    return F.cross_entropy(model.logits(x_NC).float(), targets_N, reduction="none"), rows_N


def _counted(model: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Losses]:
    """The stream where it counts (N, C), targets, rows, and the auxiliary losses of the pass."""
    device = model.embedding.weight.device
    x_BTC, auxiliary = model.hidden(tensor(batch.tokens_BT, device), context_of(batch, device))
    x_NC, targets_N = at_targets(x_BTC, batch.targets_BT)
    rows_N = tensor((batch.targets_BT != IGNORED).nonzero()[0], device)
    return x_NC, targets_N, rows_N, auxiliary
