"""Small tasks made of random numbers, and the loop in which a network learns one.

Every batch is a function of the seed and its step, so runs that differ in one setting meet the
same batches.

Axes: B rows, T tokens, C width, V vocabulary
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.core.seeds import generator_for
from stemma.train.loop import Numbers, fit
from stemma.train.optimizer import AdamW, adamw
from stemma.train.pretrain import pushed_by

IGNORED = -100
ADAM = AdamW(weight_decay=0.0, beta2=0.999)


@dataclass(frozen=True)
class Batch:
    """What a network is called with, and the tokens that it should answer; `IGNORED` count not."""

    inputs: tuple[Tensor, ...]
    targets_BT: Tensor

    @property
    def counted(self) -> int:
        return int((self.targets_BT != IGNORED).sum())


Task = Callable[[torch.Generator], Batch]


def reversal(rows: int, shortest: int, longest: int, *, vocab_size: int = 20) -> Task:
    """Source to target, last token first and each one replaced by its partner; 0 begins a target.

    All rows of a batch have one length, between `shortest` and `longest`.
    """

    def batch(stream: torch.Generator) -> Batch:
        length = int(torch.randint(shortest, longest + 1, (), generator=stream))
        source_BT = torch.randint(1, vocab_size, (rows, length), generator=stream)
        # 7 and 19 have no common divisor: every token has a partner of its own
        target_BT = source_BT.flip(1) * 7 % (vocab_size - 1) + 1
        return Batch((source_BT, F.pad(target_BT[:, :-1], (1, 0))), target_BT)

    return batch


def repetition(rows: int, length: int, *, period: int = 8, vocab_size: int = 16) -> Task:
    """Next tokens of `period` random ones said over and over; the first round does not count."""

    def batch(stream: torch.Generator) -> Batch:
        once = torch.randint(vocab_size, (rows, period), generator=stream)
        tokens = once.repeat(1, -(-(length + 1) // period))[:, : length + 1]
        targets_BT = tokens[:, 1:].clone()
        targets_BT[:, : period - 1] = IGNORED
        return Batch((tokens[:, :-1],), targets_BT)

    return batch


def skewed(rows: int, length: int, *, vocab_size: int = 64, follow: float = 0.2) -> Task:
    """Next tokens of a text in which few are frequent.

    A token is followed by its own partner with chance `follow`, else by any: the r-th one comes
    r^-1.5 times as often as the first.
    """
    frequency = torch.arange(1, vocab_size + 1) ** -1.5
    partner = torch.randperm(vocab_size, generator=generator_for(0, "partners"))

    def batch(stream: torch.Generator) -> Batch:
        drawn = torch.multinomial(frequency, rows * (length + 1), True, generator=stream)
        drawn, tokens = drawn.view(rows, -1), drawn.view(rows, -1).clone()
        follows = torch.rand(tokens.shape, generator=stream) < follow
        for place in range(1, length + 1):
            last = partner[tokens[:, place - 1]]
            tokens[:, place] = torch.where(follows[:, place], last, drawn[:, place])
        return Batch((tokens[:, :-1],), tokens[:, 1:])

    return batch


def loss_sum(model: Any, batch: Batch) -> Tensor:
    """Cross entropy in nats, summed over the targets that count; auxiliary losses push along."""
    x_BTC, auxiliary = model.hidden(*batch.inputs)
    logits = model.logits(x_BTC).flatten(0, 1)
    loss = F.cross_entropy(
        logits, batch.targets_BT.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return pushed_by(auxiliary, loss, counted=batch.counted)


def learn(
    model: nn.Module, task: Task, *, steps: int, rate: float, seed: int, warmup: int = 0
) -> Iterator[Numbers]:
    """Train with Adam; the rate rises in a straight line over `warmup` steps, then stays.

    Yields the numbers of every step. Raises DivergedError where a loss or a gradient is not finite.
    """
    windows = ([task(generator_for(seed, "batch", step))] for step in range(steps))
    return fit(
        model,
        windows,
        loss_sum,
        adamw(model, ADAM, learning_rate=rate),
        learning_rate=lambda step: rate * min(1.0, (step + 1) / max(1, warmup)),
        clip=1.0,
        seed=seed,
    )


@torch.no_grad()
def held_out(model: nn.Module, task: Task, seed: int) -> float:
    """Mean cross entropy in nats of a batch that training never draws."""
    model.eval()
    batch = task(generator_for(seed, "held out"))
    return float(loss_sum(model, batch)) / batch.counted
