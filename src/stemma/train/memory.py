"""What the loop is told beside its rate, and what it remembers between steps.

A regime is how steps are taken; it never changes. The memory is what a resumed run needs beside
weights and optimizer: the loss scale, the recent losses, and the averages.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from stemma.train.average import Average
from stemma.train.guard import Guard, Recent, recent_of
from stemma.train.precision import NO_SCALE, LossScale, Precision, first_scale


@dataclass(frozen=True)
class Regime:
    """How steps are taken; `norms_every` steps the norms of layers are told, 0: never."""

    precision: Precision = "fp32"
    guard: Guard = Guard()
    decay: float = 0.0
    norms_every: int = 0


@dataclass
class Memory:
    """What is remembered from step to step. `skipped` counts all steps that were left out."""

    regime: Regime = field(default_factory=Regime)
    scale: LossScale = NO_SCALE
    recent: Recent = field(default_factory=lambda: Recent(Guard().window))
    average: Average | None = None
    skipped: int = 0

    def to_json(self) -> dict[str, Any]:
        """What `state.json` of a checkpoint holds of it."""
        scale = {"scale": self.scale.scale, "good_steps": self.scale.good_steps}
        return {"loss_scale": scale, "recent": self.recent.to_json(), "skipped": self.skipped}

    def averages(self) -> dict[str, Tensor]:
        """What the tensors of a checkpoint hold of it, as `ema/NAME`."""
        values = self.average.values if self.average else {}
        return {f"ema/{name}": value for name, value in values.items()}


def begin_memory(regime: Regime, model: nn.Module) -> Memory:
    """The memory of a run that begins."""
    average = Average(model, regime.decay) if regime.decay else None
    recent = Recent(regime.guard.window)
    return Memory(regime, first_scale(regime.precision), recent, average)


def recall(memory: Memory, state: Mapping[str, Any]) -> None:
    """Put back what `to_json` told; what a checkpoint does not say stays as it begins."""
    if "loss_scale" in state:
        memory.scale = LossScale(**state["loss_scale"])
    memory.recent = recent_of(memory.regime.guard.window, state.get("recent", {}))
    memory.skipped = int(state.get("skipped", 0))
