"""What is added to the embedding to tell places apart: a learned table, or sines.

`limit` is the number of places that a module knows, None where there is no end.

Axes: B batch, T time, C model width
"""

import math

import torch
from torch import Tensor, nn


class LearnedPositions(nn.Module):
    """A learned vector for each absolute position, arXiv:1705.03122, section 3.1."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.limit: int | None = count
        self.weight = nn.Parameter(torch.empty(count, width))

    def forward(self, positions_BT: Tensor) -> Tensor:
        return nn.functional.embedding(positions_BT.clamp(min=0), self.weight)


class Sinusoid(nn.Module):
    """Sines and cosines of growing wavelengths, arXiv:1706.03762, section 3.5; no parameter.

    `interleaved` puts sine and cosine of one wavelength side by side, as the paper has it;
    otherwise all sines come first, as Marian and Whisper store them. What comes back is in double
    precision, for the stack to round to that of the model.
    """

    def __init__(self, width: int, *, interleaved: bool) -> None:
        super().__init__()
        self.limit: int | None = None
        if width % 2:
            raise ValueError(f"width ({width}) must be a multiple of 2 for sines and cosines")
        self.width, self.interleaved = width, interleaved

    def forward(self, positions_BT: Tensor) -> Tensor:
        pair = torch.arange(0, self.width, 2, device=positions_BT.device, dtype=torch.float64)
        frequency = torch.exp(-math.log(10_000.0) * pair / self.width)
        angle = positions_BT.clamp(min=0).double()[..., None] * frequency
        parts = angle.sin(), angle.cos()
        return torch.stack(parts, -1).flatten(-2) if self.interleaved else torch.cat(parts, -1)
