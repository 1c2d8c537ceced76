"""Muon: momentum whose singular values are all made about one, for the matrices of layers.

Keller Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024), with the weight
decay and the scale of arXiv:2502.16982, section 2.2: an update has the root mean square that one of
AdamW usually has, so a rate and a decay that suit AdamW suit Muon. Embeddings, heads, norms and
biases are moved by AdamW at the same rate, in the same optimizer.

An orthogonal update needs whole matrices: a sharded form gathers the momentum of each.
"""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from stemma.core.config import StrictModel
from stemma.train.adamw import AdamW
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
)

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Jordan's quintic: steepest at zero
ROOT_MEAN_SQUARE = 0.2  # of an update of AdamW, arXiv:2502.16982, section 2.2


class Muon(StrictModel):
    """The numbers of Muon, and of the AdamW that moves what is no matrix of a layer."""

    piece: ClassVar[Piece] = "matrix"

    kind: Literal["muon"] = Field(
        description="Muon for layers' matrices, AdamW for the rest; rates as with AdamW or higher"
    )
    weight_decay: WeightDecay = 0.1
    momentum: float = Field(default=0.95, ge=0, lt=1, description="memory of matrices' gradients")
    newton_schulz_steps: int = Field(
        default=5, ge=1, le=20, description="steps that make an update orthogonal"
    )
    beta1: Beta1 = 0.9
    beta2: Beta2 = 0.95
    eps: Eps = 1e-8
    embedding_rate: EmbeddingRate = 1.0

    def rule_for(self, part: Part) -> Rule:
        """This one for matrices, AdamW for every other part."""
        if part == "matrix":
            return self
        return AdamW(beta1=self.beta1, beta2=self.beta2, eps=self.eps)

    def fresh(self, parameter: Tensor) -> State:
        """The momentum, of the parameter's shape."""
        return {"momentum_buffer": torch.zeros_like(parameter)}

    def move(
        self,
        parameter: Tensor,
        gradient: Tensor,
        state: State,
        *,
        rate: float,
        weight_decay: float,
    ) -> None:
        """One step; axes before the last two are a batch of matrices."""
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - self.momentum)
        nesterov = gradient.lerp(momentum, self.momentum)
        update = orthogonal(nesterov, self.newton_schulz_steps)
        scale = ROOT_MEAN_SQUARE * math.sqrt(max(parameter.shape[-2:]))
        parameter.mul_(1 - rate * weight_decay)
        parameter.add_(update.to(parameter.dtype), alpha=-rate * scale)


def orthogonal(matrices: Tensor, steps: int) -> Tensor:
    """Matrices (..., R, C) with their singular vectors and singular values near one.

    Newton-Schulz iteration, by Jordan's coefficients: values end between about 0.7 and 1.2, which
    serves as well as ones. A GPU iterates in bf16, which is exact enough and the fastest there.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if tall else matrices
    x = x.bfloat16() if x.is_cuda else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # so that none is above one
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
