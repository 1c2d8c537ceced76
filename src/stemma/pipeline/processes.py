"""A stage on several processes: what each of them does, and what the leader alone does.

Torch's modules for this take a second to import, so a process that is alone never does.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from stemma import api
from stemma.core.distributed import World
from stemma.data.batches import Order
from stemma.data.tokenizer import Tokenizer
from stemma.pipeline.rows import NoRows, RowFile
from stemma.train.division import Parallel
from stemma.train.loop import Alone


def spread_over(world: World, plan: Parallel, model: Any, *, rows: int, place: str) -> Any:
    """Spread a model over the processes; `rows` is how many samples a step has.

    Returns what joins the loop to the other processes. Raises UsageError for numbers that do not
    divide.
    """
    if world.size == 1:
        plan.replicas(1)
        return Alone(model)
    from stemma.train.parallel import distribute, group_of, parts_of  # noqa: PLC0415

    device = next(model.parameters()).device.type
    group = group_of(world, plan, device)
    parts_of(rows, group, place=place)
    return distribute(model, group)


def own_order(order: Order, spread: Any) -> Order:
    """The part of every step that this process reads."""
    if isinstance(spread, Alone):
        return order
    return order.of_part(spread.group.data_rank, spread.group.data_size)


def row_file(world: World, path: Path, kind: str, *, keep_to_step: int) -> RowFile | NoRows:
    """A history, kept by the leader."""
    return RowFile(path, kind, keep_to_step=keep_to_step) if world.leads else NoRows()


def rest(spread: Any) -> None:
    """Give back what a pass without gradients gathered: weights are then in their place."""
    if not isinstance(spread, Alone):
        spread.rest()


def write_final(world: World, spread: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the trained model as a Hugging Face folder, whole."""
    state: Mapping[str, Tensor] | None = None
    if isinstance(spread, Alone):
        spread.model.to("cpu")
    else:
        state = spread.whole()
    world.told(
        lambda: api.save(spread.model, tokenizer, folder, format="hf", overwrite=True, state=state)
    )
