"""Initial weights: a pure function of (seed, parameter name), so any order and any shard agrees.

Two rules. GPT-2's: matrices N(0, std), those that write to the stream divided by sqrt(2 * depth)
("Language models are unsupervised multitask learners", 2019, section 2.3). Fan-in: matrices
N(0, 1 / inputs) (LeCun et al., "Efficient BackProp", 1998, section 4.6), those that write to the
stream zero, so that every block begins as the identity (arXiv:2003.04887 gates it to the same
effect). In both, norms are one and biases zero.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stemma.core.seeds import generator_for

WRITES_TO_STREAM = ("output.weight", "down.weight", "experts.down")
EMBEDDINGS = ("embedding.weight", "position.weight", "segment.weight")  # how their names end


def initialise(model: nn.Module, *, seed: int, std: float, depth: int) -> None:
    """Fill every parameter of a materialised model in place, by GPT-2's rule."""

    def deviation(name: str, parameter: Tensor) -> float:
        return std / math.sqrt(2 * depth) if name.endswith(WRITES_TO_STREAM) else std

    fill(model, deviation, seed=seed)


def initialise_by_fan_in(model: nn.Module, *, seed: int, embedding_std: float) -> None:
    """Fill every parameter of a materialised model in place, by the fan-in rule."""

    def deviation(name: str, parameter: Tensor) -> float:
        if name.endswith(WRITES_TO_STREAM):
            return 0.0
        return embedding_std if name.endswith(EMBEDDINGS) else parameter.shape[-1] ** -0.5

    fill(model, deviation, seed=seed)


@torch.no_grad()
def fill(model: nn.Module, deviation: Callable[[str, Tensor], float], *, seed: int) -> None:
    """Matrices N(0, deviation(name, matrix)), norms one, biases zero.

    A module whose equation asks for other values says so itself: `start(name, generator)` gives
    those of one of its own parameters in fp32, or None where the rule holds.
    """
    for name, parameter in model.named_parameters():
        place, _, own = name.rpartition(".")
        stream = generator_for(seed, "initialise", name)
        start: Any = getattr(model.get_submodule(place), "start", None)
        value = None if start is None else start(own, stream)
        if value is not None:
            parameter.copy_(value)
        elif name.endswith("bias"):
            parameter.zero_()
        elif parameter.ndim == 1:
            parameter.fill_(1.0)
        else:
            drawn = torch.empty(parameter.shape, dtype=torch.float32)
            parameter.copy_(drawn.normal_(0.0, deviation(name, parameter), generator=stream))
