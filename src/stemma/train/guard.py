"""What happens to a step that would do harm: one that is not finite, or that leaps out of the rest.

Such a step ends the training, or is left out: then weights and optimizer stay as they are, to the
bit, and the next step follows. A spike is a loss or a gradient norm above the mean of the last
steps by some standard deviations; PaLM left out the batches around such spikes by hand
(arXiv:2204.02311, section 5.1). Only steps that were taken enter that mean, and nothing is called
a spike before the window is full.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from stemma.core.config import StrictModel


class Guard(StrictModel):
    """What is done with steps that would do harm."""

    on_nonfinite: Literal["stop", "skip"] = Field(
        default="stop", description="a loss or gradient that is not finite ends it, or is left out"
    )
    on_spike: Literal["take", "skip"] = Field(
        default="take", description="a loss or gradient norm that leaps up is taken, or left out"
    )
    most_skips: int = Field(
        default=5, ge=1, description="steps left out in a row; one more ends the training"
    )
    window: int = Field(default=128, ge=2, description="taken steps that a spike is measured by")
    deviations: float = Field(
        default=6.0, gt=0, description="standard deviations above their mean that are a spike"
    )


Harm = Literal["", "nonfinite", "spike"]


@dataclass
class Recent:
    """Losses and gradient norms of the last steps taken, and how many were left out in a row."""

    window: int
    losses: deque[float] = field(default_factory=deque)
    norms: deque[float] = field(default_factory=deque)
    skips: int = 0

    def take(self, loss: float, norm: float) -> None:
        """Note a step that is taken."""
        for values, value in ((self.losses, loss), (self.norms, norm)):
            values.append(value)
            while len(values) > self.window:
                values.popleft()

    def to_json(self) -> dict[str, Any]:
        """Exactly what is needed to go on."""
        return {"losses": list(self.losses), "norms": list(self.norms), "skips": self.skips}


def recent_of(window: int, state: dict[str, Any]) -> Recent:
    """What `to_json` told; empty where a checkpoint does not say."""
    losses, norms = (deque(state.get(key, ())) for key in ("losses", "norms"))
    return Recent(window, losses, norms, int(state.get("skips", 0)))


def harm(guard: Guard, recent: Recent, loss: float, norm: float) -> Harm:
    """What is wrong with a step, if anything."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        return "nonfinite"
    if guard.on_spike == "skip":
        pairs = ((loss, recent.losses), (norm, recent.norms))
        if any(leaps(value, values, guard) for value, values in pairs):
            return "spike"
    return ""


def leaps(value: float, values: Iterable[float], guard: Guard) -> bool:
    """Whether a value is above the mean of a full window by too many standard deviations."""
    past = list(values)
    if len(past) < guard.window:
        return False
    mean = math.fsum(past) / len(past)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in past) / len(past))
    return value > mean + guard.deviations * deviation


def skipped(guard: Guard, found: Harm) -> bool:
    """Whether a harmful step is left out; otherwise it ends the training."""
    return found == "spike" or (found == "nonfinite" and guard.on_nonfinite == "skip")
