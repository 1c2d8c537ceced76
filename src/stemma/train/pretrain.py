"""Pretraining: predict the next token of documents (the objective of GPT, 2018, equation 1).

The algorithm is its loss and its windows; what runs it is `stemma.train.loop`.

Axes: B samples, T places of a sample, V vocabulary
"""

from collections.abc import Generator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.data.ahead import ahead
from stemma.data.batches import IGNORED, Batch, Order, build_batch
from stemma.data.store import TokenStore
from stemma.nn.context import Context


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


def next_token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy in nats, summed over the places that count."""
    device = next(model.parameters()).device
    logits_BTV = model(tensor(batch.tokens_BT, device), context_of(batch, device))
    targets_BT = tensor(batch.targets_BT, device)
    return F.cross_entropy(
        logits_BTV.flatten(0, 1).float(),
        targets_BT.flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )


def windows(
    store: TokenStore, order: Order, *, first_step: int, steps: int, rows: int, workers: int = 0
) -> Generator[list[Batch], None, None]:
    """The window of each step from `first_step` on, as micro-batches of at most `rows` rows.

    `workers` threads build them ahead of their step.
    """

    def window(step: int) -> list[Batch]:
        return list(build_batch(store, order.plan, order.samples(step)).split(rows))

    return ahead(window, range(first_step, steps), workers=workers)
