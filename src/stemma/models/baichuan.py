"""Baichuan 7B and 13B (Baichuan Inc., 2023) and Baichuan 2 (arXiv:2309.10305).

New against Llama: the larger model has linear biases on the scores (ALiBi, arXiv:2108.12409) in
place of rotary positions, for any number of heads; in Baichuan 2 the rows of the head have length
one (section 2.5 of the paper). The second model's loss on the largest logit is not computed here.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from stemma.core.config import StrictModel, multiple
from stemma.nn.attention import Attention
from stemma.nn.head import NormHead
from stemma.nn.mlp import GLU
from stemma.nn.norm import rms_norm
from stemma.nn.position import Alibi, Position, Rope
from stemma.nn.residual import PreNorm
from stemma.nn.stack import Block, LanguageModel

Count = Annotated[int, Field(ge=1)]


class Rotary(StrictModel):
    """Rotary positions, as the models of seven billion parameters have them."""

    kind: Literal["rope"] = "rope"
    base: float = Field(default=10_000.0, gt=0, description="base of the rotary frequencies")

    def position(self, num_heads: int, head_dim: int) -> Position:
        """The position of an attention with these heads."""
        multiple("width / num_heads", head_dim, "2 (rotary pairs)", 2)
        return Rope(head_dim, self.base)


class LinearBias(StrictModel):
    """Linear biases on the scores, as the models of thirteen billion parameters have them."""

    kind: Literal["alibi"] = "alibi"

    def position(self, num_heads: int, head_dim: int) -> Position:
        """The position of an attention with these heads."""
        return Alibi(num_heads)


class BaichuanConfig(StrictModel):
    """The numbers of a Baichuan."""

    family: ClassVar[str] = "baichuan"
    family_version: ClassVar[int] = 1

    width: Count = Field(description="width of the stream")
    depth: Count = Field(description="number of blocks")
    num_heads: Count = Field(description="attention heads; must divide width")
    hidden: Count = Field(description="inner width of the SwiGLU")
    vocab_size: Count = Field(description="rows of the embedding")
    context: Count = Field(default=4096, description="tokens the model is trained to see at once")
    position: Rotary | LinearBias = Field(
        default=Rotary(), discriminator="kind", description="how attention knows places"
    )
    norm_head: bool = Field(default=False, description="the head's rows are brought to length one")
    norm_eps: float = Field(default=1e-6, gt=0, description="epsilon inside RMSNorm")
    tied: bool = Field(default=False, description="the head shares the embedding's weights")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout while training")
    initial_std: float = Field(default=0.02, gt=0, description="deviation of the initial weights")

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.width // self.num_heads

    @model_validator(mode="after")
    def _fits(self) -> "BaichuanConfig":
        multiple("width", self.width, "num_heads", self.num_heads)
        self.position.position(self.num_heads, self.head_dim)
        if self.norm_head and self.tied:
            raise ValueError("norm_head (true) needs a head of its own: tied must be false")
        return self


def build(config: BaichuanConfig) -> LanguageModel:
    """Compose a Baichuan from its numbers."""
    c, norm = config, rms_norm(config.norm_eps)
    position = c.position.position(c.num_heads, c.head_dim)

    def block() -> Block:
        attention = Attention(
            c.width,
            c.num_heads,
            num_kv_heads=c.num_heads,
            head_dim=c.head_dim,
            position=position,
            dropout=c.dropout,
        )
        layers = {"attention": attention, "mlp": GLU(c.width, c.hidden, dropout=c.dropout)}
        return Block(c.width, layers, norm=norm, residual=PreNorm())

    head = NormHead(c.width, c.vocab_size) if c.norm_head else None
    blocks = [block() for _ in range(c.depth)]
    return LanguageModel(c, blocks, norm=norm, head=head, tied=c.tied, dropout=c.dropout)


# fmt: off
SMALL = {"width": 4096, "depth": 32, "num_heads": 32, "hidden": 11008}
LARGE = {"width": 5120, "depth": 40, "num_heads": 40, "hidden": 13696, "position": {"kind": "alibi"}}  # noqa: E501
PRESETS: dict[str, dict[str, Any]] = {
    "baichuan-7b":   {**SMALL, "vocab_size": 64000},
    "baichuan-13b":  {**LARGE, "vocab_size": 64000},
    "baichuan2-7b":  {**SMALL, "vocab_size": 125696, "norm_head": True},
    "baichuan2-13b": {**LARGE, "vocab_size": 125696, "norm_head": True},
}
# fmt: on
