"""Precision of a step: products in half precision, weights and optimizer in full.

Applied from outside by torch's autocast around the loss; the weights stay fp32, and the optimizer
steps on them (arXiv:1710.03740, section 3.1). fp16 has few exponents, so its loss is multiplied by
a scale before the backward pass and the gradients are divided by it (section 3.2). The scale is
dynamic: it is halved when a gradient overflows, and that step is not taken; it is doubled after
`GROWTH` steps without. All scales are powers of two, so scaling itself rounds nothing.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

from stemma.core.errors import UsageError

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
GROWTH = 2000  # sound steps after which the scale is doubled
LARGEST = 2.0**24
OLDEST_BF16 = 8  # the major number of the first compute capability that has bf16 products


@dataclass(frozen=True)
class LossScale:
    """What the loss is multiplied by, and how many steps it has been sound. 1 is the least."""

    scale: float = 2.0**16
    good_steps: int = 0

    def after(self, *, overflowed: bool) -> "LossScale":
        """The scale of the next step."""
        if overflowed:
            return LossScale(max(1.0, self.scale / 2))
        if self.good_steps + 1 == GROWTH:
            return LossScale(min(LARGEST, self.scale * 2))
        return LossScale(self.scale, self.good_steps + 1)


NO_SCALE = LossScale(1.0)


def first_scale(precision: Precision) -> LossScale:
    """The scale of the first step; 1 where the precision needs none."""
    return LossScale() if precision == "fp16" else NO_SCALE


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Inside, products are taken in this precision."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def require_precision(precision: Precision, device: torch.device, *, place: str) -> None:
    """Refuse bf16 on a GPU that only imitates it (UsageError, with its compute capability)."""
    if precision != "bf16" or device.type != "cuda":
        return
    major, minor = torch.cuda.get_device_capability(device)
    if major < OLDEST_BF16:
        what = f"bf16 needs compute capability {OLDEST_BF16}.0, and this GPU has {major}.{minor}"
        raise UsageError(what, place=place, fix="use precision: fp16")
