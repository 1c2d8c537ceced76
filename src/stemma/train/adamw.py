"""AdamW with decoupled weight decay (arXiv:1711.05101, algorithm 2), fused where torch can."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim.adamw import adamw as adamw_step

from stemma.core.config import StrictModel
from stemma.train.rule import (
    Beta1,
    Beta2,
    EmbeddingRate,
    Eps,
    Part,
    Piece,
    Rule,
    State,
    WeightDecay,
    groups,
)


class AdamW(StrictModel):
    """The numbers of AdamW. The learning rate is the schedule's business."""

    piece: ClassVar[Piece] = "element"

    # never written down: what earlier versions stored, and their fingerprints, had no kind
    kind: Literal["adamw"] = Field(
        default="adamw", exclude=True, description="AdamW; usual rates are 1e-4 to 3e-3"
    )
    weight_decay: WeightDecay = 0.1
    beta1: Beta1 = 0.9
    beta2: Beta2 = 0.95
    eps: Eps = 1e-8
    embedding_rate: EmbeddingRate = 1.0

    def rule_for(self, part: Part) -> Rule:
        """This one, for every part."""
        return self

    def fresh(self, parameter: Tensor) -> State:
        """Both means, of the parameter's shape, and the count of steps."""
        return {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }

    def move(
        self,
        parameter: Tensor,
        gradient: Tensor,
        state: State,
        *,
        rate: float,
        weight_decay: float,
    ) -> None:
        """One step by torch's fused kernel."""
        adamw_step(
            [parameter],
            [gradient],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            fused=True,
            amsgrad=False,
            beta1=self.beta1,
            beta2=self.beta2,
            lr=rate,
            weight_decay=weight_decay,
            eps=self.eps,
            maximize=False,
        )


def adamw(model: nn.Module, numbers: AdamW, *, learning_rate: float) -> torch.optim.AdamW:
    """An optimizer over the trainable parameters; each group's `scale` multiplies its rate.

    It is torch's own, which moves all parameters of a group at once.
    """
    return torch.optim.AdamW(
        groups(model, numbers),
        lr=learning_rate,
        betas=(numbers.beta1, numbers.beta2),
        eps=numbers.eps,
        fused=True,
    )
