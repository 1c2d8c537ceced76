"""Initial weights: a pure function of (seed, parameter name), so any order and any shard agrees.

GPT-2's rule: matrices N(0, std), the two matrices that write to the stream divided by
sqrt(2 * depth), norms one, biases zero ("Language models are unsupervised multitask learners",
2019, section 2.3).
"""

import hashlib
import math

import torch
from torch import nn

WRITES_TO_STREAM = ("output.weight", "down.weight")


def generator_for(seed: int, *names: object) -> torch.Generator:
    """A random stream of its own for every name: counted by what it is for, not by call order."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@torch.no_grad()
def initialise(model: nn.Module, *, seed: int, std: float, depth: int) -> None:
    """Fill every parameter of a materialised model in place."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.ndim == 1:
            parameter.fill_(1.0)
        else:
            scale = std / math.sqrt(2 * depth) if name.endswith(WRITES_TO_STREAM) else std
            drawn = torch.empty(parameter.shape, dtype=torch.float32)
            drawn.normal_(0.0, scale, generator=generator_for(seed, "initialise", name))
            parameter.copy_(drawn)
