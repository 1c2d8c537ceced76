"""Schedule-free AdamW: an average of weights in place of a falling rate (arXiv:2405.15682).

Three sequences: z takes the steps of AdamW, x averages z, and gradients are taken at y between the
two (section 2, equations for y, z and x; section 4.3 for AdamW). A parameter holds y in training,
and the state holds z; x follows from both. What is evaluated and kept is x: `evaluated` shows it
for a while, `settle` leaves it for good. The rate should not fall: `schedule: {kind: cosine,
floor: 1, warmup: N}` rises over N steps and stays.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from stemma.core.config import StrictModel
from stemma.train.rule import (
    Beta2,
    EmbeddingRate,
    Eps,
    Part,
    Piece,
    Rule,
    State,
    WeightDecay,
    no_steps,
)


class ScheduleFree(StrictModel):
    """The numbers of schedule-free AdamW."""

    piece: ClassVar[Piece] = "element"

    kind: Literal["schedule-free"] = Field(
        description="AdamW with averaged weights; rates one to ten times AdamW's, and no decay of "
        "the rate: schedule {kind: cosine, floor: 1, warmup: N}"
    )
    weight_decay: WeightDecay = 0.1
    beta1: float = Field(
        default=0.9, gt=0, le=1, description="how near to the average gradients are taken"
    )
    beta2: Beta2 = 0.95
    eps: Eps = 1e-8
    embedding_rate: EmbeddingRate = 1.0

    def rule_for(self, part: Part) -> Rule:
        """This one, for every part."""
        return self

    def fresh(self, parameter: Tensor) -> State:
        """z, of the parameter's shape and at first its values; means of squares; sum of weights."""
        return {
            "step": no_steps(parameter),
            "weight_sum": no_steps(parameter),
            "z": parameter.detach().clone(),
            "exp_avg_sq": torch.zeros_like(parameter),
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
        """One step of z, and y moved with it; a step weighs its squared rate in the average."""
        z, step = state["z"], state["step"].add_(1)
        mean = (
            state["exp_avg_sq"].mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        )
        root = (mean / (1 - self.beta2**step).to(mean.dtype)).sqrt_().add_(self.eps)
        direction = gradient / root + weight_decay * parameter
        share = rate**2 / state["weight_sum"].add_(rate**2).clamp(min=1e-30)
        share = share.to(parameter.dtype)
        # y = (1 - beta1) z + beta1 x, and x moves towards the new z by this step's share
        parameter.lerp_(z, share)
        parameter.sub_(direction * (rate * (1 - self.beta1 * (1 - share))))
        z.sub_(direction, alpha=rate)

    def averaged(self, parameter: Tensor, state: State) -> Tensor:
        """x from y and z."""
        return torch.lerp(state["z"], parameter, 1 / self.beta1)


def averages(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Tensor, Tensor]]:
    """Each parameter that has an average, with it; nothing for optimizers without one."""
    for group in optimizer.param_groups:
        rule = group.get("rule")
        if isinstance(rule, ScheduleFree):
            for parameter in group["params"]:
                if parameter in optimizer.state:
                    yield parameter, rule.averaged(parameter, optimizer.state[parameter])


@contextmanager
def evaluated(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Show the weights that are to be evaluated; afterwards training has every bit of its own."""
    kept: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for parameter, average in averages(optimizer):
            kept.append((parameter, parameter.clone()))
            parameter.copy_(average)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, trained in kept:
                parameter.copy_(trained)


@torch.no_grad()
def settle(optimizer: torch.optim.Optimizer) -> None:
    """Leave the averages in the parameters: training is over."""
    for parameter, average in averages(optimizer):
        parameter.copy_(average)
