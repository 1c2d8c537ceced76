"""A stage on several processes: what each of them does, and what the leader alone does.

Torch's modules for this take a second to import, so a process that is alone never does.
"""

from pathlib import Path
from typing import Any

from stemma import api
from stemma.core.distributed import World
from stemma.core.errors import UsageError
from stemma.data.tokenizer import Tokenizer
from stemma.pipeline.rows import NoRows, RowFile
from stemma.train.division import Parallel
from stemma.train.loop import Alone, Together


def spread_over(world: World, plan: Parallel, model: Any, *, rows: int, place: str) -> Together:
    """Spread a model over the processes; `rows` is how many samples a step has.

    Returns what joins the loop to the other processes. Raises UsageError for numbers that do not
    divide.
    """
    if world.size == 1:
        plan.replicas(1)
        return Alone(model)
    from stemma.train.parallel import distribute, mesh_of  # noqa: PLC0415

    device = next(model.parameters()).device.type
    spread = distribute(model, mesh_of(world, plan, device), offload=plan.offload)
    require_parts(rows, spread.parts, place=place)
    return spread


def require_parts(rows: int, parts: int, *, place: str) -> None:
    """Refuse a batch that does not divide among those that read it (UsageError)."""
    if rows % parts:
        low = max(1, rows // parts) * parts
        what = f"a batch of {rows} samples is no multiple of {parts} processes that read"
        raise UsageError(what, place=place, fix=f"use {low} or {low + parts} samples a step")


def row_file(world: World, path: Path, kind: str, *, keep_to_step: int) -> RowFile | NoRows:
    """A history, kept by the leader."""
    return RowFile(path, kind, keep_to_step=keep_to_step) if world.leads else NoRows()


def write_final(
    world: World, model: Any, spread: Together, tokenizer: Tokenizer, folder: Path
) -> None:
    """Write the trained model as a Hugging Face folder, whole."""
    state = spread.whole()
    world.told(lambda: api.save(model, tokenizer, folder, format="hf", overwrite=True, state=state))
