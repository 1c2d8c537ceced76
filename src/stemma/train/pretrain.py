"""Pretraining: predict the next token of documents (the objective of GPT, 2018, equation 1).

The algorithm is its loss and its windows; what runs it is `stemma.train.loop`.

Axes: B samples, T places of a sample, V vocabulary
"""

from collections.abc import Generator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.data.ahead import ahead
from stemma.data.batches import IGNORED, Batch, Order, build_batch
from stemma.data.store import TokenStore
from stemma.nn.context import Context
from stemma.nn.residual import Losses


def tensor(array: Any, device: torch.device) -> Tensor:
    """A batch's array on the model's device."""
    return torch.from_numpy(array).to(device)


def context_of(batch: Batch, device: torch.device) -> Context | None:
    """Positions and document ids of packed samples; None where plain causal attention is exact."""
    if batch.positions_BT is None or batch.documents_BT is None:
        return None
    return Context(
        positions_BT=tensor(batch.positions_BT, device),
        document_ids_BT=tensor(batch.documents_BT, device),
    )


def pushed_by(auxiliary: Losses, loss: Tensor, *, counted: int) -> Tensor:
    """The summed loss with the gradient of auxiliary losses too, each a mean over the tokens.

    Its value stays that of the loss alone, so that curves of networks with and without such losses
    can be compared; in the gradient they weigh as if they were added to the mean loss.
    """
    for value in auxiliary.values():
        loss = loss + counted * (value - value.detach())
    return loss


def next_token_loss(model: Any, batch: Batch) -> Tensor:
    """Cross entropy in nats, summed over the places that count; auxiliary losses push along."""
    device = next(model.parameters()).device
    x_BTC, auxiliary = model.hidden(tensor(batch.tokens_BT, device), context_of(batch, device))
    targets_BT = tensor(batch.targets_BT, device)
    loss = F.cross_entropy(
        model.logits(x_BTC).flatten(0, 1).float(),
        targets_BT.flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )
    return pushed_by(auxiliary, loss, counted=batch.counted)


def windows(
    store: TokenStore, order: Order, *, first_step: int, steps: int, rows: int, workers: int = 0
) -> Generator[list[Batch], None, None]:
    """The window of each step from `first_step` on, as micro-batches of at most `rows` rows.

    `workers` threads build them ahead of their step.
    """

    def window(step: int) -> list[Batch]:
        return list(build_batch(store, order.plan, order.samples(step)).split(rows))

    return ahead(window, range(first_step, steps), workers=workers)
