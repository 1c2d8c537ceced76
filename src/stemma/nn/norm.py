"""Normalisation: a norm is a factory from a width to a module.

block = Block(width, sublayers, norm=rms_norm(1e-5), residual=PreNorm())
"""

from collections.abc import Callable
from functools import partial

from torch import nn

Norm = Callable[[int], nn.Module]


def layer_norm(eps: float) -> Norm:
    """Layer normalisation with weight and bias, arXiv:1607.06450, equation 4."""
    return partial(nn.LayerNorm, eps=eps)


def rms_norm(eps: float) -> Norm:
    """Root-mean-square normalisation, arXiv:1910.07467, equation 4.

    `eps` stands inside the root, on the mean of squares; half precision is raised to fp32 inside.
    """
    return partial(nn.RMSNorm, eps=eps)
