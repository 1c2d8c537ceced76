"""AdamW with decoupled weight decay (arXiv:1711.05101, algorithm 2), fused where torch can.

Decay applies to matrices only: norms and biases have no direction to shrink along.
"""

import torch
from pydantic import Field
from torch import nn

from stemma.core.config import StrictModel


class AdamW(StrictModel):
    """The numbers of AdamW. The learning rate is the schedule's business."""

    weight_decay: float = Field(default=0.1, ge=0, description="decay of matrices a step, times lr")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="memory of the gradient")
    beta2: float = Field(default=0.95, ge=0, lt=1, description="memory of its square")
    eps: float = Field(default=1e-8, gt=0, description="added to the root of the square")


def adamw(model: nn.Module, numbers: AdamW, *, learning_rate: float) -> torch.optim.AdamW:
    """An optimizer over the model's parameters, in their order."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": numbers.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=learning_rate,
        betas=(numbers.beta1, numbers.beta2),
        eps=numbers.eps,
        fused=True,
    )
