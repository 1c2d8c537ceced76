"""Normalisation: a norm is a factory from a width to a module.

block = Block(width, sublayers, norm=rms_norm(1e-5), residual=PreNorm())
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]


def layer_norm(eps: float) -> Norm:
    """Layer normalisation with weight and bias, arXiv:1607.06450, equation 4."""
    return partial(nn.LayerNorm, eps=eps)


def rms_norm(eps: float) -> Norm:
    """Root-mean-square normalisation, arXiv:1910.07467, equation 4.

    `eps` stands inside the root, on the mean of squares; half precision is raised to fp32 inside.
    """
    return partial(nn.RMSNorm, eps=eps)


def offset_rms_norm(eps: float) -> Norm:
    """RMSNorm that multiplies by 1 + weight, as Gemma stores it (arXiv:2403.08295)."""
    return partial(OffsetRMSNorm, eps=eps)


def no_norm(width: int) -> nn.Module:
    """Nothing, where a scheme asks for a norm and a family has none."""
    return nn.Identity()


class OffsetRMSNorm(nn.Module):
    """x / rms(x) * (1 + weight): the weight is zero where the norm only normalises."""

    def __init__(self, width: int, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(width))

    def start(self, name: str, generator: torch.Generator) -> Tensor:
        """The weight begins at zero, where others begin at one."""
        return torch.zeros(self.weight.shape)

    def forward(self, x_BTC: Tensor) -> Tensor:
        x = x_BTC.float() if x_BTC.dtype in (torch.float16, torch.bfloat16) else x_BTC
        normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return (normed * (1 + self.weight.to(normed.dtype))).type_as(x_BTC)
