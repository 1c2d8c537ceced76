"""AdamW whose state takes eight bits a value (arXiv:2110.02861).

A block of a row keeps its largest magnitude in fp32 and every value as one of 256 shares of it, by
the paper's dynamic code (section 2.2): seven decades, finer near one. Two things differ from it.
Blocks lie within rows, so they need no whole parameter: a frequent token spoils no other row of
an embedding, and a shard of rows has the blocks of the whole. And of the second moment the root is
kept, rounded to zero only where it is zero: it spans twice as many decades, and no division by a
zero that was a small number makes a step a leap.

Small parameters keep fp32. A step takes a few rows at a time, so what it unfolds is small too.

Axes: R rows, C values of a row, N blocks of a row, K values of a block
"""

from functools import cache
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stemma.core.config import StrictModel
from stemma.train.adamw import AdamW
from stemma.train.rule import (
    Beta1,
    Beta2,
    EmbeddingRate,
    Eps,
    Part,
    Piece,
    Rule,
    State,
    WeightDecay,
    counting_dtype,
    no_steps,
)

SMALL = 4096  # values; smaller parameters are not worth it (as in the authors' own code)
AT_ONCE = 1 << 18  # values that a step unfolds at once
DECADES = 7
KEY_BITS = 18  # of fp32: sign, exponent and nine bits, finer than any two codes are apart


class AdamW8Bit(StrictModel):
    """The numbers of 8-bit AdamW."""

    piece: ClassVar[Piece] = "row"

    kind: Literal["adamw-8bit"] = Field(
        description="AdamW with a quarter of its state; rates as with AdamW"
    )
    weight_decay: WeightDecay = 0.1
    beta1: Beta1 = 0.9
    beta2: Beta2 = 0.95
    eps: Eps = 1e-8
    block: int = Field(default=256, ge=16, description="values that share one fp32 scale")
    embedding_rate: EmbeddingRate = 1.0

    def rule_for(self, part: Part) -> Rule:
        """This one, for every part."""
        return self

    def fresh(self, parameter: Tensor) -> State:
        """Two codes a value and two scales a block; AdamW's own state for small parameters."""
        if parameter.numel() < SMALL:
            return self._exact().fresh(parameter)
        state = {"step": no_steps(parameter)}
        blocks = -(-parameter.shape[-1] // self.block)
        for key in ("exp_avg", "exp_avg_sq_root"):
            code = SIGNED_ZERO if key == "exp_avg" else 0
            state[key] = torch.full_like(parameter, code, dtype=torch.uint8)
            state[f"{key}_scale"] = torch.zeros(
                *parameter.shape[:-1],
                blocks,
                dtype=counting_dtype(parameter),
                device=parameter.device,
            )
        return state

    def move(
        self,
        parameter: Tensor,
        gradient: Tensor,
        state: State,
        *,
        rate: float,
        weight_decay: float,
    ) -> None:
        """One step: the state of some rows is unfolded, brought up to date and folded again."""
        if parameter.numel() < SMALL:
            exact = self._exact()
            exact.move(parameter, gradient, state, rate=rate, weight_decay=weight_decay)
            return
        step = state["step"].add_(1)
        corrections = (1 - self.beta1**step, 1 - self.beta2**step)
        length = parameter.shape[-1]
        rows = {key: x.view(-1, x.shape[-1]) for key, x in state.items() if x.ndim}
        parameter_RC, gradient_RC = parameter.view(-1, length), gradient.reshape(-1, length)
        parameter.mul_(1 - rate * weight_decay)
        for first in range(0, len(parameter_RC), stride := max(1, AT_ONCE // length)):
            some = slice(first, first + stride)
            part = {key: x[some] for key, x in rows.items()}
            update_RC = self._update(gradient_RC[some], part, corrections)
            parameter_RC[some].sub_((rate * update_RC).to(parameter.dtype))

    def _update(
        self, gradient_RC: Tensor, state: State, corrections: tuple[Tensor, Tensor]
    ) -> Tensor:
        """AdamW's update of some rows, before the rate; their state is folded again."""
        gradient_RC = gradient_RC.to(corrections[0].dtype)
        mean_RC = unfold(state["exp_avg"], state["exp_avg_scale"], signed=True, block=self.block)
        mean_RC = mean_RC.lerp_(gradient_RC, 1 - self.beta1)
        root_RC = unfold(
            state["exp_avg_sq_root"], state["exp_avg_sq_root_scale"], signed=False, block=self.block
        )
        square_RC = root_RC.square_().lerp_(gradient_RC.square(), 1 - self.beta2)
        for key, x_RC in (("exp_avg", mean_RC), ("exp_avg_sq_root", square_RC.sqrt())):
            code_RC, scale_RN = fold(x_RC, signed=key == "exp_avg", block=self.block)
            state[key].copy_(code_RC)
            state[f"{key}_scale"].copy_(scale_RN)
        root_RC = (square_RC / corrections[1]).sqrt_().add_(self.eps)
        return mean_RC.div_(root_RC).div_(corrections[0])

    def _exact(self) -> AdamW:
        return AdamW(beta1=self.beta1, beta2=self.beta2, eps=self.eps)


@cache
def code_values(*, signed: bool) -> tuple[float, ...]:
    """The 256 numbers that a code may stand for, ascending; section 2.2 of the paper.

    A decade has half as many numbers as the one above it, in the middles of equal slices. Zero and
    one are among them; minus one is not.
    """
    found = [0.0, 1.0]
    for decade in range(DECADES):
        slices = 1 << (DECADES - decade - signed)
        middles = [0.1 + 0.9 * (number + 0.5) / slices for number in range(slices)]
        found += [middle * 10.0**-decade for middle in middles]
        if signed:
            found += [-middle * 10.0**-decade for middle in middles]
    return tuple(sorted(found))


SIGNED_ZERO = code_values(signed=True).index(0.0)


@cache
def values_of(*, signed: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The numbers that codes stand for, (256,)."""
    return torch.tensor(code_values(signed=signed), dtype=dtype, device=device)


@cache
def bounds_of(*, signed: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Up to which number a share has each code, (256,): half way to the next."""
    values = torch.tensor([*code_values(signed=signed), torch.inf], dtype=torch.float64)
    bounds = (values[1:] + values[:-1]) / 2
    if not signed:
        bounds[0] = 0.0  # a root that is not zero must not become zero
    return bounds.to(device, dtype)


@cache
def first_codes(*, signed: bool, device: torch.device) -> Tensor:
    """The code of the smallest fp32 number with each beginning of `KEY_BITS` bits, (2^KEY_BITS,).

    Numbers of one beginning are so near to each other that at most one bound is between them.
    """
    rest = 32 - KEY_BITS
    key = torch.arange(1 << KEY_BITS)
    negative = key >> (KEY_BITS - 1)
    bits = (key << rest) + negative * ((1 << rest) - 1)  # of the negative the largest magnitude
    smallest = (bits - (negative << 32)).to(torch.int32).view(torch.float32)
    bounds = bounds_of(signed=signed, dtype=torch.float32, device=key.device)
    return torch.bucketize(smallest, bounds[:-1]).to(torch.uint8).to(device)


def nearest_code(share: Tensor, *, signed: bool) -> Tensor:
    """The code, uint8, of each share; a table is asked where a search would take most of a step."""
    bounds = bounds_of(signed=signed, dtype=share.dtype, device=share.device)
    if share.dtype != torch.float32:
        return torch.bucketize(share, bounds[:-1], out_int32=True).to(torch.uint8)
    key = (share.flatten().view(torch.int32) >> (32 - KEY_BITS)).bitwise_and_((1 << KEY_BITS) - 1)
    code = first_codes(signed=signed, device=share.device).index_select(0, key)
    return (code + (share.flatten() > bounds.index_select(0, code.int()))).view(share.shape)


def fold(x_RC: Tensor, *, signed: bool, block: int) -> tuple[Tensor, Tensor]:
    """Codes (R, C), uint8, and scales (R, N) of values."""
    length = x_RC.shape[-1]
    x_RNK = F.pad(x_RC, (0, -length % block)).view(len(x_RC), -1, block)
    scale_RN = x_RNK.abs().amax(-1)
    share_RNK = x_RNK / torch.where(scale_RN > 0, scale_RN, 1)[..., None]
    return nearest_code(share_RNK, signed=signed).flatten(-2)[:, :length], scale_RN


def unfold(code_RC: Tensor, scale_RN: Tensor, *, signed: bool, block: int) -> Tensor:
    """The values (R, C) of codes and scales, in the dtype of the scales."""
    values = values_of(signed=signed, dtype=scale_RN.dtype, device=scale_RN.device)
    x_RC = values.index_select(0, code_RC.flatten().int()).view(code_RC.shape)
    return x_RC.mul_(scale_RN.repeat_interleave(block, -1)[:, : code_RC.shape[-1]])
