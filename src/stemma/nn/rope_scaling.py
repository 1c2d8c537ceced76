"""How rotary angles are changed for texts longer than the model was trained on.

Each scheme is a frozen value that a config holds under its `kind`, and gives the frequencies of
the pairs and a factor for cosine and sine. Frequencies are in fp32, in the order of operations of
the schemes' authors.

Axes: B batch, T time, P rotated pairs (P = dim / 2)
"""

import math
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor

from stemma.core.config import StrictModel

Factor = Annotated[float, Field(ge=1, description="how many times longer texts may be")]
Trained = Annotated[int, Field(ge=1, description="tokens the model was trained to see at once")]


class Scaling(Protocol):
    """What the schemes have in common."""

    @property
    def grows(self) -> bool:
        """Whether the frequencies depend on the length of the text."""

    def frequencies(self, dim: int, base: float, positions_BT: Tensor) -> tuple[Tensor, float]:
        """Radians a position for each pair, (P,), and the factor of cosine and sine.

        Schemes that grow have frequencies for each row, (B, P), by its own last position.
        """


def plain(dim: int, base: float, device: torch.device) -> Tensor:
    """base^(-2i/dim), arXiv:2104.09864, equation 15."""
    pair_P = torch.arange(0, dim, 2, device=device, dtype=torch.float32)
    return 1.0 / base ** (pair_P / dim)


def stretched(dim: int, base: float, factor: Tensor) -> Tensor:
    """Frequencies (B, P) of a base grown by a factor for each row, arXiv:2309.00071, equation 8."""
    pair_P = torch.arange(0, dim, 2, device=factor.device, dtype=torch.float32)
    base_B = (base * factor.double() ** ntk_exponent(dim)).float()
    return 1.0 / base_B[:, None] ** (pair_P / dim)


def ntk_exponent(dim: int) -> float:
    """dim / (dim - 2): so the slowest of the pairs stretches by the whole factor.

    Raises ValueError for a single pair, which has no slowest.
    """
    if dim < 4:
        raise ValueError(f"NTK scaling needs at least 4 rotary features, not {dim}")
    return dim / (dim - 2)


def lengths(positions_BT: Tensor) -> Tensor:
    """Tokens of the text so far in each row, (B,)."""
    return positions_BT.amax(dim=-1) + 1


class Unscaled(StrictModel):
    """The angles as trained."""

    kind: Literal["none"] = Field(default="none", description="the angles as trained")

    @property
    def grows(self) -> bool:
        return False

    def frequencies(self, dim: int, base: float, positions_BT: Tensor) -> tuple[Tensor, float]:
        return plain(dim, base, positions_BT.device), 1.0


class Interpolation(StrictModel):
    """Position interpolation, arXiv:2306.15595, equation 4: all angles divided by `factor`."""

    kind: Literal["linear"] = Field(default="linear", description="all angles divided")
    factor: Factor

    @property
    def grows(self) -> bool:
        return False

    def frequencies(self, dim: int, base: float, positions_BT: Tensor) -> tuple[Tensor, float]:
        return plain(dim, base, positions_BT.device) / self.factor, 1.0


class NTK(StrictModel):
    """A larger base, so that the slowest pair stretches by `factor` and the fastest hardly.

    base * factor^(dim / (dim - 2)), arXiv:2309.00071, equation 8.
    """

    kind: Literal["ntk"] = Field(default="ntk", description="a larger base")
    factor: Factor

    @property
    def grows(self) -> bool:
        return False

    def base(self, dim: int, base: float) -> float:
        """The larger base: this scheme is nothing but plain angles with it."""
        return float(base * self.factor ** ntk_exponent(dim))

    def frequencies(self, dim: int, base: float, positions_BT: Tensor) -> tuple[Tensor, float]:
        return plain(dim, self.base(dim, base), positions_BT.device), 1.0


class DynamicNTK(StrictModel):
    """NTK with a factor that follows the length of the text, none up to `context` tokens.

    The factor is `factor * length / context - (factor - 1)`, as arXiv:2309.00071, appendix B, and
    Hugging Face have it. Each row of a batch has the factor of its own length. Keys are kept as
    they are and turned when they are read, so a new token sees all of a text at the angles of its
    length; what earlier tokens have computed by then stays, so beyond `context` a text read at
    once and one read in parts differ, as in every implementation.
    """

    kind: Literal["dynamic"] = Field(
        default="dynamic", description="a base that grows with the text"
    )
    factor: Factor
    context: Trained

    @property
    def grows(self) -> bool:
        return True

    def frequencies(self, dim: int, base: float, positions_BT: Tensor) -> tuple[Tensor, float]:
        length_B = lengths(positions_BT).clamp(min=self.context).double()
        factor_B = self.factor * length_B / self.context - (self.factor - 1)
        return stretched(dim, base, factor_B), 1.0


class DoublingNTK(StrictModel):
    """NTK with a factor that grows in steps: 1, 3, 7, … at 1, 2, 4, … times `context` tokens.

    2^ceil(log2(length / context) + 1) - 1, as the code of Qwen has it (arXiv:2309.16609, section
    2.5, tells the idea). Rows, keys and texts in parts are as for `DynamicNTK`.
    """

    kind: Literal["doubling"] = Field(
        default="doubling", description="a base that grows in steps with the text"
    )
    context: Trained

    @property
    def grows(self) -> bool:
        return True

    def frequencies(self, dim: int, base: float, positions_BT: Tensor) -> tuple[Tensor, float]:
        length_B = lengths(positions_BT).clamp(min=self.context).double()
        factor_B = 2 ** torch.ceil(torch.log2(length_B / self.context) + 1) - 1
        return stretched(dim, base, factor_B), 1.0


class Yarn(StrictModel):
    """YaRN, arXiv:2309.00071, section 3: fast pairs stay, slow ones are interpolated.

    Between `slow` and `fast` full turns within the trained `context` the two are blended by a ramp
    (equations 14 and 15). Scores are sharpened by the factor 0.1 ln(factor) + 1 on cosine and sine
    (equation 22), unless `temperature` says otherwise. `whole` rounds the ramp's ends to pairs.
    """

    kind: Literal["yarn"] = Field(
        default="yarn", description="slow pairs divided, fast ones kept, a ramp between"
    )
    factor: Factor
    context: Trained
    fast: float = Field(default=32.0, gt=0, description="turns of pairs that stay as they are")
    slow: float = Field(default=1.0, gt=0, description="turns of pairs that are interpolated")
    temperature: float | None = Field(default=None, gt=0, description="factor of cosine and sine")
    whole: bool = Field(default=True, description="the ramp begins and ends at whole pairs")

    @property
    def grows(self) -> bool:
        return False

    def frequencies(self, dim: int, base: float, positions_BT: Tensor) -> tuple[Tensor, float]:
        kept_P = plain(dim, base, positions_BT.device)
        low, high = self._pair(self.fast, dim, base), self._pair(self.slow, dim, base)
        if self.whole:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        high = high + 0.001 if low == high else high
        pair_P = torch.arange(dim // 2, device=kept_P.device, dtype=torch.float32)
        slow_P = ((pair_P - low) / (high - low)).clamp(0, 1)
        frequency_P = kept_P / self.factor * slow_P + kept_P * (1 - slow_P)
        return frequency_P, self.attention_factor

    @property
    def attention_factor(self) -> float:
        """The factor of cosine and sine."""
        return sharpness(self.factor) if self.temperature is None else self.temperature

    def _pair(self, turns: float, dim: int, base: float) -> float:
        """The pair that turns this often within the trained context, as a real number."""
        return dim * math.log(self.context / (turns * 2 * math.pi)) / (2 * math.log(base))


def sharpness(factor: float, share: float = 1.0) -> float:
    """0.1 share ln(factor) + 1, arXiv:2309.00071, equation 22; DeepSeek gives a share of its own.

    >>> round(sharpness(4.0), 4), sharpness(1.0)
    (1.1386, 1.0)
    """
    return 1.0 if factor <= 1 else 0.1 * share * math.log(factor) + 1.0


class Llama3(StrictModel):
    """Llama 3.1's bands by wavelength (arXiv:2407.21783, section 3.4.3, and Meta's code).

    Wavelengths below `context / fast` stay, those above `context / slow` are divided by `factor`,
    and between them the two are blended.
    """

    kind: Literal["llama3"] = Field(default="llama3", description="the same by wavelength")
    factor: Factor
    context: Trained
    fast: float = Field(default=4.0, gt=0, description="turns of pairs that stay as they are")
    slow: float = Field(default=1.0, gt=0, description="turns of pairs that are interpolated")

    @model_validator(mode="after")
    def _ordered(self) -> "Llama3":
        if self.fast <= self.slow:
            raise ValueError(f"fast ({self.fast}) must be greater than slow ({self.slow})")
        return self

    @property
    def grows(self) -> bool:
        return False

    def frequencies(self, dim: int, base: float, positions_BT: Tensor) -> tuple[Tensor, float]:
        kept_P = plain(dim, base, positions_BT.device)
        wavelength_P = 2 * math.pi / kept_P
        share_P = (self.context / wavelength_P - self.slow) / (self.fast - self.slow)
        blend_P = (1 - share_P) * kept_P / self.factor + share_P * kept_P
        slow_P, fast_P = wavelength_P > self.context / self.slow, share_P >= 1
        frequency_P = torch.where(slow_P, kept_P / self.factor, blend_P)
        return torch.where(fast_P, kept_P, frequency_P), 1.0


Scheme = Unscaled | Interpolation | NTK | DynamicNTK | Yarn | Llama3
RopeScaling = Annotated[Scheme, Field(discriminator="kind")]
"""What a config holds, told apart by `kind`."""
