"""AdamW with decoupled weight decay (arXiv:1711.05101, algorithm 2), fused where torch can.

Decay applies to the matrices of layers only: norms and biases have no direction to shrink along,
and the row of a rare token would shrink between the few steps that touch it. For the same reason
an embedding may learn faster than the rest (`embedding_rate`).
"""

import torch
from pydantic import Field
from torch import nn

from stemma.core.config import StrictModel
from stemma.nn.embedding import LearnedPositions


class AdamW(StrictModel):
    """The numbers of AdamW. The learning rate is the schedule's business."""

    weight_decay: float = Field(
        default=0.1, ge=0, description="decay of layers' matrices a step, times lr"
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="memory of the gradient")
    beta2: float = Field(default=0.95, ge=0, lt=1, description="memory of its square")
    eps: float = Field(default=1e-8, gt=0, description="added to the root of the square")
    embedding_rate: float = Field(
        default=1.0, gt=0, description="learning rate of embeddings, times that of the rest"
    )


def adamw(model: nn.Module, numbers: AdamW, *, learning_rate: float) -> torch.optim.AdamW:
    """An optimizer over the trainable parameters; each group's `scale` multiplies its rate."""
    tables = (nn.Embedding, LearnedPositions)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, tables)}
    groups: dict[str, list[nn.Parameter]] = {"embedding": [], "matrix": [], "vector": []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            kind = "embedding" if id(parameter) in embeddings else "matrix"
            groups[kind if parameter.ndim >= 2 else "vector"].append(parameter)
    settings = {
        "embedding": {"weight_decay": 0.0, "scale": numbers.embedding_rate},
        "matrix": {"weight_decay": numbers.weight_decay, "scale": 1.0},
        "vector": {"weight_decay": 0.0, "scale": 1.0},
    }
    return torch.optim.AdamW(
        [{"params": some, **settings[kind]} for kind, some in groups.items() if some],
        lr=learning_rate,
        betas=(numbers.beta1, numbers.beta2),
        eps=numbers.eps,
        fused=True,
    )
