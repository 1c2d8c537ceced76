"""Lion: the sign of a mean of gradients (arXiv:2302.06675, algorithm 2).

Every weight moves by exactly the rate, and one mean is kept instead of two.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from stemma.core.config import StrictModel
from stemma.train.rule import EmbeddingRate, Part, Piece, Rule, State


class Lion(StrictModel):
    """The numbers of Lion."""

    piece: ClassVar[Piece] = "element"

    kind: Literal["lion"] = Field(
        description="Lion; usual rates are a third to a tenth of AdamW's, 3e-5 to 3e-4"
    )
    weight_decay: float = Field(
        default=0.5,
        ge=0,
        description="decay of matrices a step, times lr; usual are three to ten times AdamW's",
    )
    beta1: float = Field(
        default=0.9, ge=0, lt=1, description="share of the mean in the sign that is followed"
    )
    beta2: float = Field(default=0.99, ge=0, lt=1, description="memory of the gradient")
    embedding_rate: EmbeddingRate = 1.0

    def rule_for(self, part: Part) -> Rule:
        """This one, for every part."""
        return self

    def fresh(self, parameter: Tensor) -> State:
        """The mean of gradients, of the parameter's shape."""
        return {"exp_avg": torch.zeros_like(parameter)}

    def move(
        self,
        parameter: Tensor,
        gradient: Tensor,
        state: State,
        *,
        rate: float,
        weight_decay: float,
    ) -> None:
        """One step; the mean is brought up to date after it was followed."""
        mean = state["exp_avg"]
        direction = mean.lerp(gradient, 1 - self.beta1).sign_()
        parameter.mul_(1 - rate * weight_decay).add_(direction, alpha=-rate)
        mean.lerp_(gradient, 1 - self.beta2)
