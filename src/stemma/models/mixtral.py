"""Mixtral (arXiv:2401.04088).

New against Mistral and Llama: the MLP of every block is a mixture of experts. Each token asks the
`top_k` experts with the best scores, weighted by the softmax of those scores, so a model of 47
billion parameters reads a token with 13. No token is dropped: there is no capacity.
"""

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from stemma.core.config import StrictModel, rotary_heads, with_heads
from stemma.nn.attention import Attention
from stemma.nn.mask import Causal, Window
from stemma.nn.moe import GatedExperts, MoE
from stemma.nn.norm import rms_norm
from stemma.nn.position import Rope
from stemma.nn.residual import PreNorm
from stemma.nn.rope_scaling import RopeScaling, Unscaled
from stemma.nn.router import TopK
from stemma.nn.stack import Block, LanguageModel

Count = Annotated[int, Field(ge=1)]


class MixtralConfig(StrictModel):
    """The numbers of a Mixtral. What has no default follows from the width or the heads.

    The two losses are those of each layer, added up: `balance_loss` 0.02 is the weight that the
    first Mixtral was published with, 0.01 that of Switch (arXiv:2101.03961, section 2.2).
    """

    family: ClassVar[str] = "mixtral"
    family_version: ClassVar[int] = 1

    width: Count = Field(description="width of the stream")
    depth: Count = Field(description="number of blocks")
    num_heads: Count = Field(description="query heads; divide width unless head_dim is given")
    num_kv_heads: Count = Field(description="key-value heads; must divide num_heads")
    head_dim: Count = Field(description="width of one head; default width / num_heads")
    hidden: Count = Field(description="inner width of one expert")
    num_experts: Count = Field(default=8, description="experts of a block")
    top_k: Count = Field(default=2, description="experts that a token asks; at most num_experts")
    vocab_size: Count = Field(description="rows of the embedding")
    context: Count = Field(default=32768, description="tokens the model is trained to see at once")
    window: Count | None = Field(default=None, description="positions that attention sees back")
    rope_base: float = Field(default=1e6, gt=0, description="base of the rotary frequencies")
    rope_scaling: RopeScaling = Field(default=Unscaled(), description="angles for longer texts")
    norm_eps: float = Field(default=1e-5, gt=0, description="epsilon inside RMSNorm")
    tied: bool = Field(default=False, description="the head shares the embedding's weights")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout while training")
    balance_loss: float = Field(default=0.02, ge=0, description="weight of the balance loss")
    z_loss: float = Field(default=0.0, ge=0, description="weight of the router's z-loss")
    initial_std: float = Field(default=0.02, gt=0, description="deviation of the initial weights")

    _follow = model_validator(mode="before")(with_heads)

    @model_validator(mode="after")
    def _divides(self) -> "MixtralConfig":
        rotary_heads(self.num_heads, self.num_kv_heads, self.head_dim)
        if self.top_k > self.num_experts:
            what = f"top_k ({self.top_k}) must be at most num_experts ({self.num_experts})"
            raise ValueError(what)
        return self


def build(config: MixtralConfig) -> LanguageModel:
    """Compose a Mixtral from its numbers."""
    c, rope = config, Rope(config.head_dim, config.rope_base, scaling=config.rope_scaling)

    def block() -> Block:
        attention = Attention(
            c.width,
            c.num_heads,
            num_kv_heads=c.num_kv_heads,
            head_dim=c.head_dim,
            mask=Causal() if c.window is None else Window(c.window),
            position=rope,
            dropout=c.dropout,
        )
        moe = MoE(
            c.width,
            GatedExperts(c.num_experts, c.width, c.hidden),
            router=TopK(c.top_k),
            balance_loss=c.balance_loss,
            z_loss=c.z_loss,
            dropout=c.dropout,
        )
        layers = {"attention": attention, "moe": moe}
        return Block(c.width, layers, norm=rms_norm(c.norm_eps), residual=PreNorm())

    blocks = [block() for _ in range(c.depth)]
    return LanguageModel(c, blocks, norm=rms_norm(c.norm_eps), tied=c.tied, dropout=c.dropout)


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "mixtral-8x7b":  {"width": 4096, "depth": 32, "num_heads": 32, "num_kv_heads": 8, "hidden": 14336, "vocab_size": 32000},  # noqa: E501
    "mixtral-8x22b": {"width": 6144, "depth": 56, "num_heads": 48, "num_kv_heads": 8, "hidden": 16384, "vocab_size": 32000, "context": 65536, "balance_loss": 0.001},  # noqa: E501
}
# fmt: on
