"""Masked language modelling: foretell hidden tokens from both sides (BERT, arXiv:1810.04805).

Of the tokens 15 % are chosen; of these 80 % are replaced by [MASK], 10 % by a random token, and
10 % stay as they are, so that the network must have an opinion on every token that it reads
(section 3.1 and appendix A.1). The loss is that of the chosen tokens alone. What is chosen is drawn
anew in every epoch, from a stream of its own for every sample: a pure function of seed, epoch and
sample, whatever else is in the batch. Marks and padding are never chosen, nor drawn at random.

Axes: B samples, T places of a sample, N chosen places, C model width, V vocabulary
"""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from stemma.core.config import StrictModel
from stemma.core.seeds import generator_for
from stemma.data.ahead import ahead
from stemma.data.batches import IGNORED, Batch, Order
from stemma.data.marked import Marks, window_batch
from stemma.data.store import TokenStore
from stemma.nn.residual import Losses
from stemma.train.linear_loss import Measure, linear_loss
from stemma.train.loop import Parts
from stemma.train.pretrain import at_targets, context_of, parts, pushed_by, tensor

Integers = NDArray[np.int64]
FIXED = -1  # the epoch of masks that never change: those that are scored


class Masking(StrictModel):
    """How many tokens are foretold, and what stands in their place."""

    chosen: float = Field(default=0.15, gt=0, le=1, description="share of the tokens to foretell")
    hidden: float = Field(default=0.8, ge=0, le=1, description="share of these that are hidden")
    random: float = Field(
        default=0.1, ge=0, le=1, description="share of these replaced by a random token"
    )

    @model_validator(mode="after")
    def _leaves_a_rest(self) -> "Masking":
        if self.hidden + self.random > 1:
            said = f"hidden ({self.hidden}) and random ({self.random})"
            raise ValueError(f"{said} are shares of the chosen tokens and must be at most 1 in all")
        return self


@dataclass(frozen=True)
class Masker:
    """What masking needs to know: its numbers, a seed, [MASK], and the tokens that may be chosen.

    `ordinary_V` is true for every id that is no control token.
    """

    masking: Masking
    seed: int
    mask_id: int
    ordinary_V: NDArray[np.bool_]


def masker_for(
    masking: Masking, *, seed: int, marks: Marks, control_ids: Iterable[int], vocab_size: int
) -> Masker:
    """A masker for a vocabulary; `control_ids` and the marks are never chosen."""
    ordinary = np.ones(vocab_size, dtype=bool)
    ordinary[[*control_ids, marks.begin, marks.end, marks.mask, marks.padding]] = False
    return Masker(masking, seed, marks.mask, ordinary)


def mask(tokens_T: Integers, masker: Masker, draw: torch.Generator) -> tuple[Integers, Integers]:
    """What the network reads instead of a row of tokens, and the targets: IGNORED where not chosen.

    Every ordinary token is chosen by itself with the same chance.
    """
    numbers, count = masker.masking, len(tokens_T)
    choice, fate = torch.rand(2, count, generator=draw, dtype=torch.float64).numpy()
    others = np.flatnonzero(masker.ordinary_V)
    drawn = others[torch.randint(len(others), (count,), generator=draw).numpy()]
    chosen = masker.ordinary_V[tokens_T] & (choice < numbers.chosen)
    hidden = fate < numbers.hidden
    swapped = ~hidden & (fate < numbers.hidden + numbers.random)
    read = np.where(chosen & hidden, masker.mask_id, tokens_T)
    read = np.where(chosen & swapped, drawn, read)
    return read, np.where(chosen, tokens_T, IGNORED)


def masked(batch: Batch, epochs_B: Integers, masker: Masker) -> Batch:
    """The same rows with chosen tokens as targets, and with what hides them."""
    read, targets = batch.tokens_BT.copy(), batch.targets_BT.copy()
    for row, (epoch, sample) in enumerate(zip(epochs_B, batch.samples_B, strict=True)):
        draw = generator_for(masker.seed, "mask", int(epoch), int(sample))
        read[row], targets[row] = mask(batch.tokens_BT[row], masker, draw)
        if batch.documents_BT is not None:  # padding is told by its place, whatever its id
            real = batch.documents_BT[row] >= 0
            read[row] = np.where(real, read[row], batch.tokens_BT[row])
            targets[row] = np.where(real, targets[row], IGNORED)
    return replace(batch, tokens_BT=read, targets_BT=targets)


def step_batch(
    store: TokenStore, order: Order, step: int, masker: Masker, *, padding: int
) -> Batch:
    """The masked rows of a step, each masked as its epoch has it."""
    epochs, samples = order.places(step)
    return masked(window_batch(store, order.plan, samples, padding=padding), epochs, masker)


def windows_with(
    masker: Masker, *, padding: int
) -> Callable[..., Generator[list[Batch], None, None]]:
    """What makes the micro-batches of each step with a masker, for the loop."""

    def windows(
        store: TokenStore, order: Order, *, first_step: int, steps: int, rows: int, workers: int = 0
    ) -> Generator[list[Batch], None, None]:
        def window(step: int) -> list[Batch]:
            return list(step_batch(store, order, step, masker, padding=padding).split(rows))

        return ahead(window, range(first_step, steps), workers=workers)

    return windows


def masked_loss(model: Any, batch: Batch) -> Tensor:
    """Cross entropy in nats, summed over the chosen tokens; auxiliary losses push along."""
    return masked_parts(model, batch).loss


def masked_parts(model: Any, batch: Batch, *, z_loss: float = 0.0) -> Parts:
    """The same, with a z loss of this weight that pushes along and is told apart."""
    x_NC, targets_N, auxiliary = _chosen(model, batch)
    found = linear_loss(model, x_NC, targets_N, Measure(z_loss=z_loss))
    return parts(pushed_by(auxiliary, found.loss, counted=batch.counted), found.z, z_loss)


def foretold(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Scores over the vocabulary (N, V) for every chosen token, and what it is (N,)."""
    x_NC, targets_N, _ = _chosen(model, batch)
    return model.logits(x_NC).float(), targets_N


def _chosen(model: Any, batch: Batch) -> tuple[Tensor, Tensor, Losses]:
    """The stream where a token was chosen (N, C), what it is, and the auxiliary losses."""
    device = model.embedding.weight.device
    x_BTC, auxiliary = model.hidden(tensor(batch.tokens_BT, device), context_of(batch, device))
    return *at_targets(x_BTC, batch.targets_BT), auxiliary
