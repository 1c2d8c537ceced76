"""Feature maps: values that turn queries and keys into features whose product stands for a kernel.

With phi(q) . phi(k) in place of exp(q . k), a sum over keys is a matrix that can be kept, and
attention needs neither a table of scores nor the past (arXiv:2006.16236, section 3.2). A map gives
features in units: the feature is `values * exp(unit)`. So the exponential maps never overflow;
whoever divides one sum of features by another need not leave the safe range at all.

Random directions are a pure function of a seed. They are no parameter and no buffer, so there is
nothing to save, to load or to forget on torch's meta device.

Axes: B batch, H heads, T time, D width of one head, F features
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from stemma.core.seeds import generator_for

SMALLEST = 1e-30  # a sum below this is nothing: its inverse would overflow in fp32


class Features(NamedTuple):
    """Features (B, H, T, F) in units (B, H, T) given by their logarithm; None where all are 1."""

    values_BHTF: Tensor
    unit_BHT: Tensor | None = None

    def plain(self) -> Tensor:
        """The features themselves, (B, H, T, F)."""
        if self.unit_BHT is None:
            return self.values_BHTF
        return self.values_BHTF * self.unit_BHT.exp()[..., None]


class FeatureMap(Protocol):
    """What the maps have in common; queries and keys go through the same one."""

    def __call__(self, x_BHTD: Tensor, /) -> Features:
        """The features of queries or keys."""


@dataclass(frozen=True)
class EluPlusOne:
    """elu(x) + 1: as many features as the head is wide, all above zero, arXiv:2006.16236, eq. 7."""

    def __call__(self, x_BHTD: Tensor) -> Features:
        # one exponential and no subtraction: elu(-20) + 1 would be rounded to zero in fp32
        return Features(x_BHTD.clamp(max=0).exp() + x_BHTD.relu())


@dataclass(frozen=True)
class DPFP:
    """Deterministic parameter-free projection, arXiv:2102.11174, equation 37.

    r = relu([x, -x]) is multiplied by itself, shifted by 1 to `shifts` places (nu in the paper):
    2 D shifts features, of which different inputs share few.
    """

    shifts: int

    def __post_init__(self) -> None:
        if self.shifts < 1:
            raise ValueError(f"a projection with {self.shifts} shifts has no feature; at least 1")

    def __call__(self, x_BHTD: Tensor) -> Features:
        rectified = torch.cat((x_BHTD, -x_BHTD), dim=-1).relu()
        shifted = [rectified.roll(-places, dims=-1) for places in range(1, self.shifts + 1)]
        return Features(torch.cat([rectified * other for other in shifted], dim=-1))


@dataclass(frozen=True)
class Favor:
    """FAVOR+, positive orthogonal random features, arXiv:2009.14794, lemma 1 and section 2.4.

    exp(w . x - |x|^2 / 2) / sqrt(count) for `count` directions w, where x is the input times
    D^(-1/4): the expected product of two maps is exp(q . k / sqrt(D)). The unit of a token is its
    largest feature. The directions are drawn once, from `seed` and `layer`, and never again.
    """

    count: int
    seed: int
    layer: int = 0

    def __call__(self, x_BHTD: Tensor) -> Features:
        x_BHTD = x_BHTD * x_BHTD.shape[-1] ** -0.25
        half_BHT1 = x_BHTD.square().sum(-1, keepdim=True) / 2
        exponent = x_BHTD @ self.directions(x_BHTD).T - half_BHT1
        # a unit only moves the range: features do not change with it, so it needs no gradient
        unit_BHT1 = exponent.amax(-1, keepdim=True).detach()
        values = (exponent - unit_BHT1).exp() / math.sqrt(self.count)
        return Features(values, unit_BHT1[..., 0])

    def directions(self, like: Tensor) -> Tensor:
        """The random directions (count, D), with the precision and on the device of `like`."""
        return _directions(self.seed, self.layer, self.count, like)


@dataclass(frozen=True)
class TrigonometricFavor:
    """Random Fourier features of the same kernel, arXiv:2009.14794, section 2.3.

    exp(|x|^2 / 2) / sqrt(count) * [sin(w . x), cos(w . x)]: unbiased too, but of either sign and
    with the greatest error where the kernel is smallest, which is why the paper leaves them.
    """

    count: int
    seed: int
    layer: int = 0

    def __call__(self, x_BHTD: Tensor) -> Features:
        x_BHTD = x_BHTD * x_BHTD.shape[-1] ** -0.25
        angle = x_BHTD @ self.directions(x_BHTD).T
        values = torch.cat((angle.sin(), angle.cos()), dim=-1) / math.sqrt(self.count)
        return Features(values, x_BHTD.square().sum(-1) / 2)

    def directions(self, like: Tensor) -> Tensor:
        """The random directions (count, D), with the precision and on the device of `like`."""
        return _directions(self.seed, self.layer, self.count, like)


@dataclass(frozen=True)
class SumNormalised:
    """The features of another map, divided by their sum, arXiv:2102.11174, equation 29.

    Features must not be negative; a read is then an average over the columns of the memory. It
    takes the place of the normaliser z, so the rule that is given these must not keep z as well.
    """

    map: FeatureMap

    def __call__(self, x_BHTD: Tensor) -> Features:
        values = self.map(x_BHTD).values_BHTF  # the unit falls out of the quotient
        return Features(values / values.sum(-1, keepdim=True).clamp(min=SMALLEST))


def draw_directions(seed: int, layer: int, count: int, dim: int) -> Tensor:
    """Gaussian directions (count, dim) in fp64, orthogonal within each block of `dim`.

    A block is a uniformly random orthogonal matrix; its rows get the lengths of Gaussian vectors,
    so each row alone is an ordinary Gaussian one, arXiv:2009.14794, section 2.4.
    """
    stream = generator_for(seed, "directions", layer, count, dim)
    blocks = []
    for _ in range(-(-count // dim)):
        gaussian = _gaussian(dim, dim, stream)
        turned, triangle = torch.linalg.qr(gaussian)
        blocks.append(turned * triangle.diagonal().sign())  # without the signs it is not uniform
    lengths = _gaussian(count, dim, stream).norm(dim=1)
    directions: Tensor = torch.cat(blocks)[:count] * lengths[:, None]
    return directions


DRAWN: dict[tuple[object, ...], Tensor] = {}  # a plain table: a compiler can look things up in it


def _directions(seed: int, layer: int, count: int, like: Tensor) -> Tensor:
    name = seed, layer, count, like.shape[-1], like.dtype, like.device
    if name not in DRAWN:
        # what is kept must also serve a later pass that trains
        with torch.inference_mode(False), torch.no_grad():
            DRAWN[name] = draw_directions(seed, layer, count, like.shape[-1]).to(like)
    return DRAWN[name]


def _gaussian(rows: int, columns: int, stream: torch.Generator) -> Tensor:
    drawn = torch.empty(rows, columns, dtype=torch.float64, device="cpu")
    drawn.normal_(generator=stream)
    return drawn
