"""Recomputation: what a module computed inside is forgotten and computed again for its gradient.

Activations of the modules that are chosen are not kept (arXiv:1604.06174, section 4): memory is
saved for about one more forward pass of them. Applied from outside while training runs; the
network is the same before and after, its parameters keep their names, and the numbers are the same
to the bit: dropout draws what it drew. Auxiliary losses are outputs of a block, so that they count
once. A pass that writes into a cache (a recurrent decoder carries its state in one) is not
repeated: it would begin from the state that it left.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.utils.checkpoint import checkpoint

from stemma.core.config import StrictModel
from stemma.core.errors import UsageError, closest
from stemma.nn.context import Context
from stemma.nn.select import SHOWN, patterns_of
from stemma.nn.stack import Block


class Recompute(StrictModel):
    """Which modules are computed again in the backward pass."""

    every: int = Field(
        default=0, ge=0, description="every n-th block is computed again; 1: all, 0: none"
    )
    modules: tuple[str, ...] = Field(
        default=(), description="patterns of the modules to compute again, as blocks.*.mlp"
    )

    @model_validator(mode="after")
    def _says_one(self) -> "Recompute":
        if self.every and self.modules:
            raise ValueError("give one of every and modules")
        return self


def chosen(model: nn.Module, recompute: Recompute, *, place: str) -> list[tuple[str, nn.Module]]:
    """The modules to compute again, by name; what lies below one of them is not named again.

    Raises UsageError for a pattern that names nothing.
    """
    modules = [(name, module) for name, module in model.named_modules() if name]
    if recompute.every:
        return [named for named in modules if isinstance(named[1], Block)][:: recompute.every]
    for pattern in recompute.modules:
        if not any(fnmatchcase(name, pattern) for name, _ in modules):
            near = closest(pattern, patterns_of(n for n, _ in modules), count=SHOWN, likeness=0.0)
            what, fix = f"no module matches {pattern!r}", f"nearest: {', '.join(near)}"
            raise UsageError(what, place=place, fix=fix)
    found: list[tuple[str, nn.Module]] = []
    for name, module in modules:
        above = any(name.startswith(f"{other}.") for other, _ in found)
        if not above and any(fnmatchcase(name, pattern) for pattern in recompute.modules):
            found.append((name, module))
    return found


@contextmanager
def recomputing(model: nn.Module, recompute: Recompute, *, place: str) -> Iterator[None]:
    """Inside, the chosen modules forget what they compute, wherever gradients are wanted."""
    modules = [module for _, module in chosen(model, recompute, place=place)]
    try:
        for module in modules:
            module.forward = forgetting(module.forward)
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)  # the class has its own


def forgetting(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward pass that keeps nothing but its inputs and the state of the random streams."""

    def again(*inputs: Any) -> Any:
        writes = any(isinstance(value, Context) and value.caches is not None for value in inputs)
        if writes or not torch.is_grad_enabled():
            return forward(*inputs)
        return checkpoint(forward, *inputs, use_reentrant=False)

    return again
