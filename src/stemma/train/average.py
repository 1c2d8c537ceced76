"""An exponential moving average of the weights, for scoring and for what training leaves.

After every step that is taken, average = decay * average + (1 - decay) * weight, beginning with the
first weights (arXiv:1412.6980, section 7.2). Training itself never reads it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pydantic import Field
from torch import nn

from stemma.core.config import StrictModel


class Ema(StrictModel):
    """An average of the weights over the last steps."""

    decay: float = Field(
        default=0.0, ge=0, lt=1, description="what stays of the average at each step; 0: none"
    )
    final: bool = Field(
        default=True, description="whether `final/` holds the average, not the last weights"
    )


class Average:
    """The averages of all weights that learn, by name."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.values = {name: weight.detach().clone() for name, weight in self.weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move every average towards its weight."""
        torch._foreach_lerp_(
            list(self.values.values()), list(self.weights.values()), 1 - self.decay
        )

    @torch.no_grad()
    def settle(self) -> None:
        """Make the averages the weights, for good."""
        for name, weight in self.weights.items():
            weight.copy_(self.values[name])

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, the model has the averages as its weights; afterwards its own, to the bit."""
        own = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.settle()  # in place: what is spread over processes is known by its memory
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in self.weights.items():
                    weight.copy_(own[name])
