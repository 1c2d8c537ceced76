"""Compilation by block, from outside: `module.compile()` renames nothing and can be taken back.

All blocks of one kind share their code, so the compiler works once a kind and not once a layer.
Numbers differ from the plain ones in their last digits. Only training uses the compiled blocks:
scoring and sampling feed them other shapes at every call.
"""

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from stemma.core.errors import ResourceError
from stemma.nn.stack import Block

COMPILER = "clang++" if sys.platform == "darwin" else "g++"  # what torch looks for
CALL = "_compiled_call_impl"  # where torch keeps what `module.compile()` made


def require_compiler(device: torch.device, *, place: str) -> None:
    """Refuse to compile where nothing can (ResourceError)."""
    if device.type == "cpu":
        name = os.environ.get("CXX") or COMPILER
        missing = shutil.which(name) is None
        what, fix = f"no C++ compiler ({name})", f"install {COMPILER}"
    else:
        missing = importlib.util.find_spec("triton") is None
        what, fix = "no compiler for the GPU (triton)", "pip install triton"
    if missing:
        raise ResourceError(what, place=place, fix=f"{fix}, or leave compile: false")


@contextmanager
def compiling(model: nn.Module, **settings: Any) -> Iterator[None]:
    """Inside, the blocks of a network are compiled; `settings` are those of `torch.compile`."""
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    try:
        for block in blocks:
            block.compile(**settings)
        yield
    finally:
        for block in blocks:
            setattr(block, CALL, None)


@contextmanager
def resting(model: nn.Module) -> Iterator[None]:
    """Inside, modules run as they are written, compiled or not."""
    compiled = {m: getattr(m, CALL) for m in model.modules() if getattr(m, CALL) is not None}
    try:
        for module in compiled:
            setattr(module, CALL, None)
        yield
    finally:
        for module, call in compiled.items():
            setattr(module, CALL, call)
