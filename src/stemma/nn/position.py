"""Positions that act inside attention, as frozen values.

A position turns queries and keys (`rotate`, by a `table` of angles), or adds to the scores
(`bias`), or neither. The stack computes the table and the bias of each distinct value once per
forward pass, from the positions of that pass: there is no buffer to save, resize or forget on
another device.

Axes: B batch, T queries, S keys, H heads, D width of one head, P rotated pairs (P = dim / 2)
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from stemma.nn.rope_scaling import Scaling, Unscaled


class Position(Protocol):
    """What the positions have in common.

    `late` asks attention to keep keys as they are and to turn them when they are read: for angles
    that depend on how long the text has become.
    """

    @property
    def late(self) -> bool:
        """Whether keys are turned after they are taken from the cache."""

    def table(self, positions_BT: Tensor) -> Any:
        """What `rotate` needs, from absolute positions; None where nothing turns."""

    def rotate(self, x_BTHD: Tensor, table: Any) -> Tensor:
        """Queries or keys, turned."""

    def bias(self, query_BT: Tensor, key_BS: Tensor) -> Tensor | None:
        """What is added to the scores, (B or 1, H, T, S) in fp32; None where nothing is."""


@dataclass(frozen=True)
class NoPosition:
    """Attention that knows order by its mask alone, or by what was added to the embedding."""

    @property
    def late(self) -> bool:
        return False

    def table(self, positions_BT: Tensor) -> None:
        return None

    def rotate(self, x_BTHD: Tensor, table: None) -> Tensor:
        return x_BTHD

    def bias(self, query_BT: Tensor, key_BS: Tensor) -> None:
        return None


@dataclass(frozen=True)
class Rope:
    """Rotary positions, arXiv:2104.09864, equation 34.

    Feature i is paired with feature i + dim/2, as Hugging Face stores most families, or with its
    neighbour where `interleaved`, as the paper and GLM have it. Only the first `dim` features of a
    head rotate; the rest pass. `scaling` changes the angles for texts longer than trained on.
    """

    dim: int
    base: float = 10_000.0
    interleaved: bool = False
    scaling: Scaling = Unscaled()

    def __post_init__(self) -> None:
        if self.dim < 2 or self.dim % 2:
            raise ValueError(f"{self.dim} rotary features do not pair: an even number, at least 2")
        if not isinstance(self.scaling, Unscaled):
            self._try_scaling()

    def _try_scaling(self) -> None:
        """Find out now, and not at the first pass, whether the scheme can scale these angles."""
        try:
            self.scaling.frequencies(self.dim, self.base, torch.zeros(1, 1, device="cpu"))
        except (ZeroDivisionError, OverflowError) as error:
            what = f"angles of base {self.base} cannot be scaled by {self.scaling!r}"
            raise ValueError(what) from error

    @property
    def late(self) -> bool:
        return self.scaling.grows

    def table(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine (B, T, 1, P) in fp32, whatever the precision of the model."""
        frequency, factor = self.scaling.frequencies(self.dim, self.base, positions_BT)
        angle = positions_BT.float()[..., None, None] * frequency[..., None, None, :]
        return angle.cos() * factor, angle.sin() * factor

    def rotate(self, x_BTHD: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        """Rotate each pair by its position's angle, in fp32; returns the input's precision."""
        cosine, sine = table
        turning = x_BTHD[..., : self.dim]
        if self.interleaved:
            first, second = turning[..., 0::2], turning[..., 1::2]
        else:
            first, second = turning.chunk(2, dim=-1)
        pair = first * cosine - second * sine, second * cosine + first * sine
        turned = torch.stack(pair, dim=-1).flatten(-2) if self.interleaved else torch.cat(pair, -1)
        if self.dim < x_BTHD.shape[-1]:
            turned = torch.cat((turned, x_BTHD[..., self.dim :]), dim=-1)
        return turned.type_as(x_BTHD)

    def bias(self, query_BT: Tensor, key_BS: Tensor) -> None:
        return None


@dataclass(frozen=True)
class Alibi:
    """Attention with linear biases, arXiv:2108.12409, section 3: -slope * distance on the scores.

    Slopes are 2^(-8/n), 2^(-16/n), … for n heads; between powers of two, those of the next lower
    power and every second one of twice it, as the authors' code has it.
    """

    num_heads: int

    @property
    def late(self) -> bool:
        return False

    def slopes(self) -> list[float]:
        """One slope a head, H numbers.

        >>> Alibi(4).slopes()
        [0.25, 0.0625, 0.015625, 0.00390625]
        """
        power = 2 ** math.floor(math.log2(self.num_heads))
        whole = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
        return whole + [2.0 ** (-4 * (2 * i + 1) / power) for i in range(self.num_heads - power)]

    def table(self, positions_BT: Tensor) -> None:
        return None

    def rotate(self, x_BTHD: Tensor, table: None) -> Tensor:
        return x_BTHD

    def bias(self, query_BT: Tensor, key_BS: Tensor) -> Tensor:
        slope_H = torch.tensor(self.slopes(), device=query_BT.device)
        distance_BTS = (query_BT[:, :, None] - key_BS[:, None, :]).abs().float()
        return -slope_H[None, :, None, None] * distance_BTS[:, None]


@dataclass(frozen=True)
class Buckets:
    """T5's relative positions, arXiv:1910.10683, section 2.1: distances in buckets, learned.

    Half of the buckets (of each direction) hold one distance each, the others grow by a constant
    factor up to `farthest`. The learned numbers are one table for the whole stack, which owns it:
    see `stemma.nn.relative`.
    """

    count: int
    farthest: int
    both_directions: bool

    def __post_init__(self) -> None:
        least = 4 if self.both_directions else 2
        if self.count < least:
            raise ValueError(f"{self.count} buckets do not part near from far; at least {least}")
        if self.farthest <= self.count * 2 // least // 2:
            near = f"the {self.count * 2 // least // 2} distances with a bucket of their own"
            raise ValueError(f"the farthest distance ({self.farthest}) must be above {near}")

    @property
    def late(self) -> bool:
        return False

    def table(self, positions_BT: Tensor) -> None:
        return None

    def rotate(self, x_BTHD: Tensor, table: None) -> Tensor:
        return x_BTHD

    def bias(self, query_BT: Tensor, key_BS: Tensor) -> Tensor:
        raise LookupError("the table of T5's buckets belongs to the stack: hand it `relative`")

    def index(self, query_BT: Tensor, key_BS: Tensor) -> Tensor:
        """The bucket of every pair of positions, (B, T, S)."""
        distance_BTS = key_BS[:, None, :] - query_BT[:, :, None]
        count, first_BTS = self.count, torch.zeros_like(distance_BTS)
        if self.both_directions:
            count //= 2
            first_BTS = (distance_BTS > 0).long() * count
            distance_BTS = distance_BTS.abs()
        else:
            distance_BTS = -distance_BTS.clamp(max=0)
        exact = count // 2
        growth = torch.log(distance_BTS.clamp(min=1).float() / exact)
        far_BTS = exact + (growth / math.log(self.farthest / exact) * (count - exact)).long()
        return first_BTS + torch.where(
            distance_BTS < exact, distance_BTS, far_BTS.clamp(max=count - 1)
        )
