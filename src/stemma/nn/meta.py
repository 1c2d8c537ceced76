"""Networks without memory: parameters have shapes and dtypes, and nothing behind them.

A model is built this way first, then gets its weights from a seed or from a file. The layers' own
initialisation is left out: it would draw nothing useful, and on torch's meta device it imports a
compiler's worth of modules (over a second).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class SkipInitialisation(TorchFunctionMode):
    """Makes the functions of `torch.nn.init` that draw return their tensor as it is."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if getattr(func, "__module__", None) == "torch.nn.init":
            return given["tensor"] if "tensor" in given else args[0]
        return func(*args, **given)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Inside, layers are made without memory and without initial values."""
    with torch.device("meta"), SkipInitialisation():
        yield
