"""Choosing the next token: one frozen value says how, pure functions on logits do it.

The order is that of Hugging Face: repetition penalty, temperature, top-k, top-p, min-p. Work is
done in double precision. The noise is a pure function of (seed, position), so a text depends on
its own prompt and seed only: never on its batch, on the order of calls or on the device.

Axes: B batch, V vocabulary, K the best of it
"""

import hashlib
import math
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator
from torch import Tensor

from stemma.core.config import StrictModel

StopString = Annotated[str, Field(min_length=1, max_length=256)]


class Sampling(StrictModel):
    """How tokens are chosen and when a text ends."""

    temperature: float = Field(
        default=0.8,
        ge=0,
        allow_inf_nan=False,
        description="0 always takes the likeliest token, 1 draws from the model's distribution",
    )
    top_k: int = Field(default=0, ge=0, description="keep the k likeliest tokens; 0 keeps all")
    top_p: float = Field(
        default=0.95, gt=0, le=1, description="keep the fewest tokens that hold this probability"
    )
    min_p: float = Field(
        default=0.0, ge=0, lt=1, description="drop tokens below this share of the likeliest"
    )
    repetition_penalty: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="above 1 makes tokens that the text already has less likely",
    )
    stop: tuple[StopString, ...] = Field(
        default=(), max_length=16, description="the text ends before the first of these strings"
    )
    seed: int | None = Field(
        default=None, ge=0, le=2**63 - 1, description="the same seed gives the same text"
    )
    logprobs: int = Field(
        default=0, ge=0, le=20, description="report log-probabilities, with this many best tokens"
    )
    max_new_tokens: int = Field(default=256, ge=1, description="tokens to add at most")

    @field_validator("stop", mode="before")
    @classmethod
    def _listed(cls, stop: Any) -> Any:
        return tuple(stop) if isinstance(stop, list) else stop  # JSON and YAML have no tuples


def penalise(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Make tokens that occurred less likely, arXiv:1909.05858, section 4.1.

    A positive score is divided and a negative one multiplied, so that a penalty above 1 always
    lowers it; the paper's formula divides both, which would raise negative scores.
    """
    lowered_BV = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return torch.where(seen_BV, lowered_BV, logits_BV)


def temper(logits_BV: Tensor, temperature: float) -> Tensor:
    """Divide by the temperature, after moving the largest score to 0 so that nothing overflows."""
    return (logits_BV - logits_BV.amax(-1, keepdim=True)) / temperature


def keep_top_k(logits_BV: Tensor, count: int) -> Tensor:
    """Keep the `count` best scores and all that equal the last of them, arXiv:1805.04833."""
    count = min(count, logits_BV.shape[-1])
    worst_B1 = logits_BV.topk(count).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < worst_B1, -math.inf)


def keep_top_p(logits_BV: Tensor, share: float) -> Tensor:
    """Keep the nucleus: the fewest best tokens that hold `share`, arXiv:1904.09751, section 3.1.

    All tokens that equal the last of them stay too, so that no order of equals decides.
    """
    total_B1 = logits_BV.logsumexp(-1, keepdim=True)
    size = logits_BV.shape[-1]
    # a trained model's nucleus is small, and sorting a whole vocabulary costs as much as a layer
    for count in (64, 512, size):
        ranked_BK = logits_BV.topk(min(count, size)).values
        mass_BK = (ranked_BK - total_B1).exp()
        reached_BK = mass_BK.cumsum(-1)
        if (reached_BK[:, -1] >= share).all():
            break
    kept_B1 = (reached_BK - mass_BK < share).sum(-1, keepdim=True)
    return logits_BV.masked_fill(logits_BV < ranked_BK.gather(-1, kept_B1 - 1), -math.inf)


def keep_min_p(logits_BV: Tensor, share: float) -> Tensor:
    """Keep tokens with at least `share` of the best one's probability, arXiv:2407.01082."""
    least_B1 = logits_BV.amax(-1, keepdim=True) + math.log(share)
    return logits_BV.masked_fill(logits_BV < least_B1, -math.inf)


def distribution(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """The probabilities to draw from: temperature, top-k, top-p, min-p, softmax, in this order.

    The temperature must be above 0.
    """
    logits_BV = temper(logits_BV, sampling.temperature)
    if sampling.top_k:
        logits_BV = keep_top_k(logits_BV, sampling.top_k)
    if sampling.top_p < 1:
        logits_BV = keep_top_p(logits_BV, sampling.top_p)
    if sampling.min_p:
        logits_BV = keep_min_p(logits_BV, sampling.min_p)
    return logits_BV.softmax(-1)


def uniform(seed: int, position: int) -> float:
    """The random number in [0, 1) of one position of one text: a hash, so there is no state."""
    digest = hashlib.sha256(f"sample {seed} {position}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def draw(probabilities_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Invert the cumulative distribution at a uniform number; ids (B,).

    A token of probability 0 is never drawn: the first entry strictly above the number is taken.
    """
    cumulative_BV = probabilities_BV.cumsum(-1)
    cumulative_BV = cumulative_BV / cumulative_BV[:, -1:]
    return torch.searchsorted(cumulative_BV, uniform_B[:, None], right=True).squeeze(-1)
