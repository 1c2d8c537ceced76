"""Stemma: from a folder of text to a chat model, with the lineage of language models in one house.

The public face is small: `load`, `save`, `build` and `generate`. They arrive on first use
(PEP 562), so that `import stemma` costs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stemma.api import build, generate, load, save

__version__ = "0.1.0"
__all__ = ["__version__", "build", "generate", "load", "save"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("stemma.api"), name)
    raise AttributeError(f"module 'stemma' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
