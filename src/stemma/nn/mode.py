"""Evaluation for a while: dropout rests, and afterwards every module is in the mode it was in."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Switch modules to evaluation, each on its own: `with evaluating(model.modules()):`.

    A model may be frozen in part, so one `model.train()` at the end would not put it back.
    """
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
