"""Positions that act inside attention, as frozen values.

The stack computes the table of each distinct value once per forward pass, from the positions of
that pass: there is no buffer to save, resize or forget on another device.

Axes: B batch, T time, H heads, D width of one head, P rotated pairs (P = dim / 2)
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rope:
    """Rotary positions, arXiv:2104.09864, equation 34, in the layout of halves.

    Feature i is paired with feature i + dim/2, as Hugging Face stores it; checkpoints with
    neighbouring pairs are permuted by the converter, never at run time. Only the first `dim`
    features of a head rotate; the rest pass.
    """

    dim: int
    base: float = 10_000.0

    def table(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine (B, T, 1, P) in fp32, whatever the precision of the model."""
        pair_P = torch.arange(0, self.dim, 2, device=positions_BT.device, dtype=torch.float32)
        frequency_P = 1.0 / self.base ** (pair_P / self.dim)
        angle = positions_BT.float()[..., None, None] * frequency_P
        return angle.cos(), angle.sin()

    def rotate(self, x_BTHD: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        """Rotate each pair by its position's angle, in fp32; returns the input's precision."""
        cosine, sine = table
        first, second = x_BTHD[..., : self.dim].chunk(2, dim=-1)
        rotated = [first * cosine - second * sine, second * cosine + first * sine]
        if self.dim < x_BTHD.shape[-1]:
            rotated.append(x_BTHD[..., self.dim :])
        return torch.cat(rotated, dim=-1).type_as(x_BTHD)
