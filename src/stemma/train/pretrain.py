"""Pretraining: predict the next token of documents (the objective of GPT, 2018, equation 1).

The algorithm is its loss and its windows; what runs it is `stemma.train.loop`.

Axes: B samples, T places of a sample, N places that count, C model width
"""

from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from numpy import int64
from numpy.typing import NDArray
from torch import Tensor

from stemma.data.ahead import ahead
from stemma.data.batches import IGNORED, Batch, Order, build_batch
from stemma.data.store import TokenStore
from stemma.nn.context import Context
from stemma.nn.residual import Losses
from stemma.train.linear_loss import Measure, linear_loss
from stemma.train.loop import Parts


def tensor(array: Any, device: torch.device) -> Tensor:
    """A batch's array on the model's device; a GPU is not waited for."""
    found = torch.from_numpy(array)
    if device.type == "cuda":
        return found.pin_memory().to(device, non_blocking=True)
    return found.to(device)


def context_of(batch: Batch, device: torch.device) -> Context | None:
    """Positions and document ids of packed samples; None where plain causal attention is exact."""
    if batch.positions_BT is None or batch.documents_BT is None:
        return None
    return Context(
        positions_BT=tensor(batch.positions_BT, device),
        document_ids_BT=tensor(batch.documents_BT, device),
    )


def at_targets(x_BTC: Tensor, targets_BT: NDArray[int64]) -> tuple[Tensor, Tensor]:
    """The stream at the places that count (N, C), and their targets (N,).

    Which they are is found before the targets are on the device, which would be waited for.
    """
    places_N = np.flatnonzero(targets_BT != IGNORED)
    targets_N = tensor(targets_BT.reshape(-1)[places_N], x_BTC.device)
    return x_BTC.flatten(0, 1).index_select(0, tensor(places_N, x_BTC.device)), targets_N


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
    return next_token_parts(model, batch).loss


def next_token_parts(model: Any, batch: Batch, *, z_loss: float = 0.0) -> Parts:
    """The same, with a z loss of this weight that pushes along and is told apart."""
    device = next(model.parameters()).device
    x_BTC, auxiliary = model.hidden(tensor(batch.tokens_BT, device), context_of(batch, device))
    targets_BT = tensor(batch.targets_BT, device)
    found = linear_loss(model, x_BTC.flatten(0, 1), targets_BT.flatten(), Measure(z_loss=z_loss))
    return parts(pushed_by(auxiliary, found.loss, counted=batch.counted), found.z, z_loss)


def parts(loss: Tensor, z: Tensor, weight: float) -> Parts:
    """A loss, beside it its z loss where it has any weight."""
    return Parts(loss, {"z_loss": z} if weight else {})


def windows(
    store: TokenStore, order: Order, *, first_step: int, steps: int, rows: int, workers: int = 0
) -> Generator[list[Batch], None, None]:
    """The window of each step from `first_step` on, as micro-batches of at most `rows` rows.

    `workers` threads build them ahead of their step.
    """

    def window(step: int) -> list[Batch]:
        return list(build_batch(store, order.plan, order.samples(step)).split(rows))

    return ahead(window, range(first_step, steps), workers=workers)
