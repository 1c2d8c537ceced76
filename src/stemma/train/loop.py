"""The loop: a generator that takes one optimizer step per window and yields that step's numbers.

A window is a list of micro-batches. The loss of a step is the sum over every counted token of the
window divided by their number, so the number of micro-batches does not change the gradient, also
where masks are ragged or the last micro-batch is short. The caller owns the loop: it logs,
evaluates, saves and stops.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from stemma.core.errors import DivergedError
from stemma.core.progress import LOG
from stemma.core.seeds import generator_for

Numbers = dict[str, float]
STILL = 20  # steps in a row without any gradient after which it is said


class Counted(Protocol):
    """A micro-batch that knows how many of its targets count."""

    @property
    def counted(self) -> int: ...


MicroBatch = TypeVar("MicroBatch", bound=Counted)
LossSum = Callable[[nn.Module, MicroBatch], Tensor]
"""The loss summed, not averaged, over the counted targets of a micro-batch."""


def accumulate(
    model: nn.Module, window: Sequence[MicroBatch], loss_sum: LossSum[MicroBatch]
) -> tuple[float, int]:
    """Add the gradient of the window's mean loss to the parameters.

    Returns the mean loss in nats and the number of counted targets.
    """
    counted = sum(batch.counted for batch in window)
    total = 0.0
    for batch in window:
        loss = loss_sum(model, batch)
        (loss / max(1, counted)).backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total / max(1, counted), counted


def seed_step(seed: int, step: int) -> None:
    """Give dropout a random stream that depends on the step alone, so a resume meets the same."""
    torch.manual_seed(generator_for(seed, "step", step).initial_seed())


def fit(
    model: nn.Module,
    windows: Iterable[Sequence[MicroBatch]],
    loss_sum: LossSum[MicroBatch],
    optimizer: torch.optim.Optimizer,
    *,
    learning_rate: Callable[[int], float],
    clip: float,
    seed: int,
    first_step: int = 0,
) -> Iterator[Numbers]:
    """Train; `learning_rate(step)` is the rate of each step, `clip` the largest gradient norm.

    Yields `step` (steps taken so far), `loss` (nats per token), `tokens` (counted in this step),
    `gradient_norm` and `learning_rate`.

    Warns once where the gradient was exactly zero for `STILL` steps in a row. Raises DivergedError
    before a step whose loss or gradient is not finite is taken.
    """
    still = 0
    for step, window in enumerate(windows, start=first_step):
        model.train()
        seed_step(seed, step)
        rate = learning_rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        optimizer.zero_grad(set_to_none=True)
        loss, counted = accumulate(model, window, loss_sum)
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DivergedError(
                f"loss {loss}, gradient norm {norm} at step {step}, learning rate {rate:.3g}",
                fix="the step was not taken; lower learning_rate, or lengthen the warm-up",
            )
        if still < STILL:  # beyond, it has been said
            still = 0 if norm else still + 1
            if still == STILL:
                what = "step %d: the gradient was exactly zero for %d steps: nothing is learned"
                LOG.warning(what, step, STILL)
        optimizer.step()
        yield {
            "step": step + 1,
            "loss": loss,
            "tokens": counted,
            "gradient_norm": norm,
            "learning_rate": rate,
        }
