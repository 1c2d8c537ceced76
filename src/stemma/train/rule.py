"""How one parameter moves: what all optimizers share.

A rule is a frozen value: the numbers of an optimizer, and its update as a function of a parameter,
its gradient and its state. `RuleOptimizer` applies the rules of its groups parameter by parameter;
nothing else is kept anywhere, so state is saved and restored by name, and a sharded form gathers
no more than `piece` says.

Decay applies to matrices only: norms and biases have no direction to shrink along, and the row of
a rare token would shrink between the few steps that touch it. For the same reason an embedding may
learn faster than the rest.
"""

from typing import Annotated, Any, ClassVar, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from stemma.nn.embedding import LearnedPositions

State = dict[str, Tensor]
Part = Literal["embedding", "head", "matrix", "vector"]
Piece = Literal["element", "row", "matrix"]

DECAYED: tuple[Part, ...] = ("head", "matrix")
HEADS = ("head.weight", "classifier.weight", "relative.weight")  # how their names end

# keys that several optimizers have: one description and one limit for all
WeightDecay = Annotated[
    float, Field(ge=0, description="decay of layers' matrices a step, times lr")
]
Beta1 = Annotated[float, Field(ge=0, lt=1, description="memory of the gradient")]
Beta2 = Annotated[float, Field(ge=0, lt=1, description="memory of its square")]
Eps = Annotated[float, Field(gt=0, description="added to the root of the square")]
EmbeddingRate = Annotated[
    float,
    Field(gt=0, description="learning rate of embeddings, times that of the rest"),
]


class Rule(Protocol):
    """An update with its numbers.

    `piece` is the smallest piece of a parameter that moves without the rest of it: an element; a
    row, which is all of the last axis; or a matrix, which is all of the last two axes (of a vector
    the whole of it). Axes before these are a batch.
    """

    piece: ClassVar[Piece]

    def fresh(self, parameter: Tensor) -> State:
        """The state before the first step: keys, shapes and dtypes stay what they are here."""
        ...

    def move(
        self,
        parameter: Tensor,
        gradient: Tensor,
        state: State,
        *,
        rate: float,
        weight_decay: float,
    ) -> None:
        """Change a parameter and its state in place."""
        ...


class Numbers(Protocol):
    """What an optimizer's numbers tell of its groups."""

    @property
    def weight_decay(self) -> float: ...
    @property
    def embedding_rate(self) -> float: ...
    def rule_for(self, part: Part) -> Rule:
        """The rule of a part of the network."""
        ...


def parts(model: nn.Module) -> dict[Part, list[nn.Parameter]]:
    """The trainable parameters by what they are.

    `embedding` are the tables that a token or a place looks up, a head tied to one included.
    `head` are matrices of which a row stands for a token, a label or a distance and not for a
    feature. `matrix` are those of layers, stacked experts (E, F, C) among them; `vector` the rest.
    """
    tables = (nn.Embedding, LearnedPositions)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, tables)}
    found: dict[Part, list[nn.Parameter]] = {
        "embedding": [],
        "head": [],
        "matrix": [],
        "vector": [],
    }
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2:
            found["vector"].append(parameter)
        elif id(parameter) in embeddings:
            found["embedding"].append(parameter)
        else:
            found["head" if name.endswith(HEADS) else "matrix"].append(parameter)
    return found


def groups(model: nn.Module, numbers: Numbers) -> list[dict[str, Any]]:
    """Parameter groups in torch's form; each group's `scale` multiplies its rate."""
    return [
        {
            "params": some,
            "rule": numbers.rule_for(part),
            "weight_decay": numbers.weight_decay if part in DECAYED else 0.0,
            "scale": numbers.embedding_rate if part == "embedding" else 1.0,
        }
        for part, some in parts(model).items()
        if some
    ]


class RuleOptimizer(torch.optim.Optimizer):
    """Moves every parameter by the rule of its group."""

    def __init__(self, model: nn.Module, numbers: Numbers, *, learning_rate: float) -> None:
        super().__init__(groups(model, numbers), {"lr": learning_rate})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step with the gradients that are there; a parameter without one stays."""
        for group in self.param_groups:
            rule: Rule = group["rule"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter not in self.state:
                    self.state[parameter] = rule.fresh(parameter)
                rule.move(
                    parameter,
                    parameter.grad,
                    self.state[parameter],
                    rate=group["lr"],
                    weight_decay=group["weight_decay"],
                )


def kept_states(optimizer: torch.optim.Optimizer) -> dict[Tensor, State]:
    """What the state of each parameter will look like: tensors on meta, without values.

    Nothing is told of the parameters of groups that have no rule.
    """
    return {
        parameter: group["rule"].fresh(
            torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
        )
        for group in optimizer.param_groups
        if "rule" in group
        for parameter in group["params"]
    }


def counting_dtype(parameter: Tensor) -> torch.dtype:
    """The dtype of sums and counts that belong to a parameter: fp32 at least."""
    return torch.promote_types(parameter.dtype, torch.float32)


def no_steps(parameter: Tensor) -> Tensor:
    """A count of steps, on the device of the parameter so that no step waits for it."""
    return torch.zeros((), dtype=counting_dtype(parameter), device=parameter.device)
