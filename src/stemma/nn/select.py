"""Choosing modules by the patterns of their names: which are trained, which are adapted.

A pattern is a module's or parameter's name, `*` standing for any text: `blocks.*.attention.query`,
`*.mlp`, `norm`. What lies below a chosen module is chosen with it. A pattern that names nothing is
an error with the nearest names: training would otherwise go on with fewer parameters than asked
for, or none.
"""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from stemma.core.errors import UsageError, closest

SHOWN = 5  # nearest names in a message


def patterns_of(names: Iterable[str]) -> list[str]:
    """Names with the numbers of layers left open, each once.

    >>> patterns_of(["blocks.0.mlp", "blocks.1.mlp", "norm"])
    ['blocks.*.mlp', 'norm']
    """
    return list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in names if name))


def choose(model: nn.Module, patterns: Iterable[str], *, place: object) -> list[str]:
    """Names of all parameters that lie at or below what a pattern names, in the model's order.

    Raises UsageError, naming `place`, for a pattern that names nothing.
    """
    parameters = [name for name, _ in model.named_parameters()]
    chosen: set[str] = set()
    for pattern in patterns:
        found = {
            name
            for name in parameters
            if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
        }
        if not found:
            parts = (name.split(".") for name in parameters)
            above = (".".join(part[:end]) for part in parts for end in range(1, len(part)))
            known = patterns_of(above)
            near = closest(pattern, known, count=SHOWN, likeness=0.0)
            what = f"no module matches {pattern!r}"
            raise UsageError(what, place=place, fix=f"nearest: {', '.join(near)}")
        chosen |= found
    return [name for name in parameters if name in chosen]


def train_only(model: nn.Module, patterns: Iterable[str], *, place: object) -> None:
    """Let only the parameters that the patterns choose learn; all of them where there is none."""
    patterns = tuple(patterns)
    if not patterns:
        return
    chosen = set(choose(model, patterns, place=place))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
