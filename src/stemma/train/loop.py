"""The loop: a generator that takes one optimizer step per window and yields that step's numbers.

A window is a list of micro-batches. The loss of a step is the sum over every counted token of the
window divided by their number, so the number of micro-batches does not change the gradient, also
where masks are ragged or the last micro-batch is short. The caller owns the loop: it logs,
evaluates, saves and stops.

What a step is worth stays on the device until its end: then all its numbers are fetched at once,
and it is decided whether the step is taken (`stemma.train.guard`).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from stemma.core.errors import DivergedError
from stemma.core.progress import LOG
from stemma.core.seeds import generator_for
from stemma.train.guard import harm, skipped
from stemma.train.memory import Memory
from stemma.train.norms import norms_of
from stemma.train.precision import autocast

Numbers = dict[str, float]
STILL = 20  # steps in a row without any gradient after which it is said


class Counted(Protocol):
    """A micro-batch that knows how many of its targets count."""

    @property
    def counted(self) -> int: ...


class Parts(NamedTuple):
    """A summed loss, and what is told beside it: sums over the same targets, without gradient."""

    loss: Tensor
    apart: Mapping[str, Tensor]


MicroBatch = TypeVar("MicroBatch", bound=Counted)
TensorSum = Callable[[nn.Module, MicroBatch], Tensor]
"""The loss summed, not averaged, over the counted targets of a micro-batch."""
LossSum = Callable[[nn.Module, MicroBatch], Tensor | Parts]
"""The same, or with parts that are told apart."""


class Together(Protocol):
    """Those that take a step together, each with its part of the window: `part` of `parts`."""

    @property
    def part(self) -> int: ...
    @property
    def parts(self) -> int: ...
    def sums(self, *numbers: float) -> list[float]:
        """Sums over all parts."""

    def begin_backward(self, *, last: bool) -> None:
        """Say whether the coming pass is the last of its step."""

    def clip(self, limit: float) -> Tensor:
        """Make the gradient that of all, and its norm at most `limit`; returns its norm."""

    def rest(self) -> None:
        """Put the weights in their place after a pass that learned nothing."""

    def whole(self) -> dict[str, Tensor]:
        """The weights of all, on the CPU; none of them trains after it."""


@dataclass(frozen=True)
class Alone:
    """A process that takes its steps by itself."""

    model: nn.Module
    part: ClassVar[int] = 0
    parts: ClassVar[int] = 1

    def sums(self, *numbers: float) -> list[float]:
        return list(numbers)

    def begin_backward(self, *, last: bool) -> None:
        return None

    def clip(self, limit: float) -> Tensor:
        return nn.utils.clip_grad_norm_(self.model.parameters(), limit)

    def rest(self) -> None:
        return None

    def whole(self) -> dict[str, Tensor]:
        return self.model.to("cpu").state_dict()


def accumulate(
    model: nn.Module,
    window: Sequence[MicroBatch],
    loss_sum: TensorSum[MicroBatch],
    together: Together | None = None,
) -> tuple[Tensor, int]:
    """Add the gradient of the window's mean loss to the parameters.

    The mean is over the targets of all processes. Returns this one's part of the loss in nats, on
    the model's device, and the number of counted targets of all.
    """
    together = together or Alone(model)
    counted = int(together.sums(sum(batch.counted for batch in window))[0])
    total: Tensor | None = None
    for number, batch in enumerate(window, start=1):
        together.begin_backward(last=number == len(window))
        loss = loss_sum(model, batch)
        (loss / max(1, counted)).backward()  # type: ignore[no-untyped-call]
        part = wide(loss.detach())
        total = part if total is None else total + part
    return (torch.zeros(()) if total is None else total) / max(1, counted), counted


def wide(tensor: Tensor) -> Tensor:
    """In double precision, where the device has it: sums of many parts then lose nothing."""
    return tensor if tensor.device.type == "mps" else tensor.double()


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
    memory: Memory | None = None,
    together: Together | None = None,
) -> Iterator[Numbers]:
    """Train; `learning_rate(step)` is the rate of each step, `clip` the largest gradient norm.

    `memory` has how steps are taken, and what is remembered between them; it is that of the steps
    so far whenever numbers are yielded. `together` joins this process to others, each of which gets
    its part of every window; they all come to the same numbers.

    Yields `step` (steps consumed so far), `loss` (nats per token), `tokens` (counted in this step),
    `gradient_norm` and `learning_rate`; where they apply also `loss_scale`, norms by layer and the
    parts that a loss tells apart, each a mean over the tokens. A step that was left out yields
    `skipped_REASON`, and of loss and norm what is finite.

    Warns once where the gradient was exactly zero for `STILL` steps in a row. Raises DivergedError
    for a harmful step that the guard does not leave out; that step is not taken.
    """
    memory, together, still = memory or Memory(), together or Alone(model), 0
    for step, window in enumerate(windows, start=first_step):
        model.train()
        seed_step(seed, step)
        rate = learning_rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        optimizer.zero_grad(set_to_none=True)
        apart: dict[str, Tensor] = {}
        summed = prepared(loss_sum, memory, apart)
        loss, counted = accumulate(model, window, summed, together)
        parts = {name: total / max(1, counted) for name, total in apart.items()}
        found = measured(model, memory, {"loss": loss, **parts}, together, step=step, clip=clip)
        numbers = {"step": step + 1, **found, "tokens": counted, "learning_rate": rate}
        reason = left_out(memory, numbers)
        if reason:
            told = {name: value for name, value in numbers.items() if math.isfinite(value)}
            yield told | {f"skipped_{reason}": 1.0}
            continue
        if still < STILL:  # beyond, it has been said
            still = 0 if numbers["gradient_norm"] else still + 1
            if still == STILL:
                what = "step %d: the gradient was exactly zero for %d steps: nothing is learned"
                LOG.warning(what, step, STILL)
        optimizer.step()
        remember(memory, numbers)
        yield numbers


def prepared(
    loss_sum: LossSum[MicroBatch], memory: Memory, apart: dict[str, Tensor]
) -> TensorSum[MicroBatch]:
    """The loss in the regime's precision, times the loss scale; its parts are added to `apart`."""
    precision, scale = memory.regime.precision, memory.scale.scale

    def scaled_sum(model: nn.Module, batch: MicroBatch) -> Tensor:
        with autocast(precision, next(model.parameters()).device):
            found = loss_sum(model, batch)
        if isinstance(found, Parts):
            for name, value in found.apart.items():
                part = wide(value.detach())
                apart[name] = apart[name] + part if name in apart else part
            found = found.loss
        return found if scale == 1.0 else found * scale

    return scaled_sum


def measured(
    model: nn.Module,
    memory: Memory,
    sums: Mapping[str, Tensor],
    together: Together,
    *,
    step: int,
    clip: float,
) -> Numbers:
    """Undo the loss scale, clip the gradient, and fetch the step's numbers all at once."""
    every, scale = memory.regime.norms_every, memory.scale.scale
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    tensors = dict(sums)
    if scale != 1.0:
        torch._foreach_mul_(gradients, 1 / scale)
        tensors["loss"] = tensors["loss"] / scale
    more = norms_of(model) if every and (step + 1) % every == 0 else {}
    norm = together.clip(clip)
    numbers = fetched({**tensors, "gradient_norm": norm, **more})
    numbers |= zip(sums, together.sums(*(numbers[name] for name in sums)), strict=True)
    return numbers if memory.regime.precision != "fp16" else numbers | {"loss_scale": scale}


def fetched(tensors: Mapping[str, Tensor]) -> Numbers:
    """Numbers from the device, in one transfer."""
    device = tensors["gradient_norm"].device
    values = torch.stack([wide(tensor.detach().to(device)) for tensor in tensors.values()])
    return dict(zip(tensors, values.tolist(), strict=True))


def left_out(memory: Memory, numbers: Numbers) -> str:
    """Why a step is left out; "" where it is taken. Raises DivergedError where it ends it all."""
    loss, norm, guard = numbers["loss"], numbers["gradient_norm"], memory.regime.guard
    if memory.scale.scale > 1 and math.isfinite(loss) and not math.isfinite(norm):
        memory.scale = memory.scale.after(overflowed=True)  # the scale was too large, no more
        memory.skipped += 1
        return "overflow"
    found = harm(guard, memory.recent, loss, norm)
    if not found:
        return ""
    memory.recent.skips += 1
    if not skipped(guard, found) or memory.recent.skips > guard.most_skips:
        before = memory.recent.skips - 1
        at = f"at step {int(numbers['step']) - 1}, learning rate {numbers['learning_rate']:.3g}"
        told = f", after {before} steps in a row that were left out" if before else ""
        raise DivergedError(
            f"loss {loss}, gradient norm {norm} {at}{told}",
            fix="the step was not taken; lower learning_rate, or lengthen the warm-up",
        )
    memory.skipped += 1
    return found


def remember(memory: Memory, numbers: Numbers) -> None:
    """Move what is remembered past a step that was taken."""
    memory.recent.skips = 0
    if memory.regime.guard.on_spike == "skip":
        memory.recent.take(numbers["loss"], numbers["gradient_norm"])
    if memory.average is not None:
        memory.average.update()
    if memory.regime.precision == "fp16":
        memory.scale = memory.scale.after(overflowed=False)
