"""Learning-rate schedules: frozen values that answer, for a step of a run, what share of the peak.

Steps count from 0; the first step of a warm-up already moves (share 1 / warmup).
"""

import math
from typing import Literal

from pydantic import Field

from stemma.core.config import StrictModel


class Cosine(StrictModel):
    """Linear warm-up, then half a cosine down to `floor` (arXiv:1608.03983, equation 5)."""

    kind: Literal["cosine"]
    warmup: int = Field(default=0, ge=0, description="steps of linear warm-up")
    floor: float = Field(default=0.1, ge=0, le=1, description="share of the peak at the end")

    def share(self, step: int, steps: int) -> float:
        """The share of the peak learning rate at `step` of `steps`."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, steps - 1 - self.warmup)
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


class WarmupStableDecay(StrictModel):
    """Warm-up, a plateau, then a straight line down to `floor` (arXiv:2404.06395, section 4.2)."""

    kind: Literal["wsd"]
    warmup: int = Field(default=0, ge=0, description="steps of linear warm-up")
    decay: float = Field(default=0.2, gt=0, le=1, description="share of the run that decays")
    floor: float = Field(default=0.0, ge=0, le=1, description="share of the peak at the end")

    def share(self, step: int, steps: int) -> float:
        """The share of the peak learning rate at `step` of `steps`."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        left = (steps - step) / max(1.0, self.decay * steps)
        return self.floor + (1 - self.floor) * min(1.0, left)


class InverseRoot(StrictModel):
    """Warm-up, then down with the root of the step (arXiv:1706.03762, equation 3).

    The peak is reached at the end of the warm-up; the paper's factor width^-0.5 is part of it.
    """

    kind: Literal["inverse-root"]
    warmup: int = Field(default=1, ge=1, description="steps of linear warm-up")

    def share(self, step: int, steps: int) -> float:
        """The share of the peak learning rate at `step` of `steps`."""
        return min((step + 1) / self.warmup, math.sqrt(self.warmup / (step + 1)))


Schedule = Cosine | WarmupStableDecay | InverseRoot
