"""How a stage takes its steps, applied from outside to the network that it trains.

Precision, compilation, recomputation, averages and figures come from the stage's keys; what has to
be remembered between steps is in the loop's memory (`stemma.train.memory`) and in each checkpoint.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from stemma.eval.compute import training_flops_per_token
from stemma.train import checkpoint
from stemma.train.compiled import compiling, require_compiler, resting
from stemma.train.loop import LossSum, Numbers, Parts
from stemma.train.memory import Memory, Regime, begin_memory, recall
from stemma.train.meter import utilisation
from stemma.train.precision import require_precision
from stemma.train.profile import profiled
from stemma.train.reader import Reader
from stemma.train.recompute import chosen, recomputing

SKIPPED = "skipped_"  # how the numbers of a step that was left out say why


def begin_steps(stage: Any, model: nn.Module, *, place: str) -> Memory:
    """What the loop remembers before the first step.

    Raises UsageError for a precision that the device lacks and for modules that the network lacks,
    ResourceError where nothing can compile.
    """
    device = next(model.parameters()).device
    require_precision(stage.precision, device, place=f"{place}: precision")
    chosen(model, stage.recompute, place=f"{place}: recompute.modules")
    if stage.compile:
        require_compiler(device, place=f"{place}: compile")
    regime = Regime(stage.precision, stage.guard, stage.ema.decay, stage.statistics.every)
    return begin_memory(regime, model)


def go_on(memory: Memory, found: checkpoint.Checkpoint) -> None:
    """Remember what a checkpoint holds."""
    recall(memory, found.state.get("memory", {}))
    if memory.average is not None:
        reader = Reader(found.folder, found.manifest)
        for name, value in memory.average.values.items():
            reader.fill(f"ema/{name}", value)


@contextmanager
def applied(stage: Any, model: nn.Module, *, place: str) -> Iterator[None]:
    """Inside, the network is recomputed and compiled as the stage has it."""
    with ExitStack() as stack:
        stack.enter_context(recomputing(model, stage.recompute, place=place))
        if stage.compile:
            stack.enter_context(compiling(model))
        yield


@contextmanager
def scoring(model: nn.Module, memory: Memory) -> Iterator[None]:
    """Inside, the network is what is scored: its averages if it has any, not compiled."""
    with ExitStack() as stack:
        stack.enter_context(resting(model))
        if memory.average is not None:
            stack.enter_context(memory.average.used())
        yield


def settle(stage: Any, memory: Memory) -> None:
    """Make the averages the weights once the last step is done, where the stage asks for it."""
    if memory.average is not None and stage.ema.final:
        memory.average.settle()


def objective(
    loss: Callable[[Any, Any], Tensor], parts: Callable[..., Parts], z_loss: float
) -> LossSum[Any]:
    """The loss of a stage, with its z loss where that has any weight."""
    return partial(parts, z_loss=z_loss) if z_loss else loss


def traced(
    steps: Iterable[Numbers], stage: Any, *, first_step: int, folder: Path
) -> Iterator[Numbers]:
    """The steps; those that the stage asks for leave a trace in `profile/` of its folder."""
    return profiled(steps, stage.profile, first_step=first_step, folder=folder / "profile")


def left_out(numbers: Numbers) -> bool:
    """Whether a step was not taken."""
    return any(name.startswith(SKIPPED) for name in numbers)


def use_of_machine(stage: Any, model: Any, tokens: int, taken: float) -> dict[str, float]:
    """`mfu`, for the row of a step that read so many tokens in so many seconds."""
    device = next(model.parameters()).device
    flops = flops_of(model, stage.context)
    return {"mfu": utilisation(flops, tokens, taken, device, stage.precision)}


def flops_of(model: Any, context: int) -> float:
    """Operations of a token in training; where layers are unknown 6 a weight (arXiv:2001.08361).

    A table that only looks up costs nothing; a tied embedding is the head's matrix too.
    """
    try:
        return training_flops_per_token(model, context)
    except (TypeError, AttributeError):
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        tables = ["position.weight", "segment.weight", "source_embedding.weight"]
        if "head.weight" in sizes:
            tables.append("embedding.weight")
        counted = [size for n, size in sizes.items() if not n.endswith(tuple(tables))]
        return float(6 * sum(counted))
