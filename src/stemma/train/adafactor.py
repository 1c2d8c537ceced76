"""Adafactor: second moments of a matrix from those of its rows and columns (arXiv:1804.04235).

Algorithm 4 for matrices, algorithm 5 for vectors, with the hyperparameters of algorithm 6 and no
first moment. The rate is relative: a step is that share of the parameter's own root mean square
(section 8). The paper's rate, min(1e-6 t, 1 / sqrt(t)), is `learning_rate: 1e-2` with the schedule
`{kind: inverse-root, warmup: 10000}`. Decay is decoupled, as with AdamW; the paper has none.

The means of rows and columns need whole matrices: a sharded form sums them over the shards.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from stemma.core.config import StrictModel
from stemma.train.rule import (
    EmbeddingRate,
    Part,
    Piece,
    Rule,
    State,
    WeightDecay,
    counting_dtype,
    no_steps,
)

SQUARE_FLOOR = 1e-30  # epsilon 1, added to squares of gradients
SIZE_FLOOR = 1e-3  # epsilon 2: a parameter of zeros must be able to leave


class Adafactor(StrictModel):
    """The numbers of Adafactor."""

    piece: ClassVar[Piece] = "matrix"

    kind: Literal["adafactor"] = Field(
        description="Adafactor; the rate is relative to each parameter's size, 1e-2 is usual"
    )
    weight_decay: WeightDecay = 0.01
    decay_power: float = Field(
        default=0.8, gt=0, le=1, description="memory of squares at step t is 1 - t ** -power"
    )
    clip_update: float = Field(
        default=1.0, gt=0, description="largest root mean square of an update before the rate"
    )
    embedding_rate: EmbeddingRate = 1.0

    def rule_for(self, part: Part) -> Rule:
        """This one, for every part."""
        return self

    def fresh(self, parameter: Tensor) -> State:
        """Means of squares: of rows (..., R, 1) and columns (..., 1, C), or of a vector (C,)."""
        zeros = torch.zeros_like(parameter, dtype=counting_dtype(parameter))
        if parameter.ndim < 2:
            return {"step": no_steps(parameter), "exp_avg_sq": zeros}
        return {
            "step": no_steps(parameter),
            "exp_avg_sq_row": zeros.mean(-1, keepdim=True),
            "exp_avg_sq_column": zeros.mean(-2, keepdim=True),
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
        """One step; axes before the last two are a batch of matrices."""
        new_share = state["step"].add_(1) ** -self.decay_power
        gradient = gradient.to(new_share.dtype)
        squares = gradient.square() + SQUARE_FLOOR
        if "exp_avg_sq" in state:
            update = gradient * state["exp_avg_sq"].lerp_(squares, new_share).rsqrt()
        else:
            row = state["exp_avg_sq_row"].lerp_(squares.mean(-1, keepdim=True), new_share)
            column = state["exp_avg_sq_column"].lerp_(squares.mean(-2, keepdim=True), new_share)
            # root by root: the product of two small means would be no number of fp32
            update = gradient * (row / row.mean(-2, keepdim=True)).rsqrt() * column.rsqrt()
        update /= (root_mean_square(update) / self.clip_update).clamp(min=1.0)
        size = root_mean_square(parameter.to(update.dtype)).clamp(min=SIZE_FLOOR)
        parameter.mul_(1 - rate * weight_decay).sub_((rate * size * update).to(parameter.dtype))


def root_mean_square(x: Tensor) -> Tensor:
    """Of each matrix (..., R, C), as (..., 1, 1); of a vector (C,), as (1,)."""
    return x.square().mean(dim=tuple(range(-min(2, x.ndim), 0)), keepdim=True).sqrt()
