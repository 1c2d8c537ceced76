"""Mistral 7B (arXiv:2310.06825).

New against Llama: attention sees a window of the last positions, its own among them, so its cache
stays as long as the window; what is farther back arrives through the layers below. Later versions
are without the window, and with heads of a width of their own.
"""

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from stemma.core.config import StrictModel, rotary_heads, with_heads
from stemma.nn.attention import Attention
from stemma.nn.mask import Causal, Window
from stemma.nn.mlp import GLU
from stemma.nn.norm import rms_norm
from stemma.nn.position import Rope
from stemma.nn.residual import PreNorm
from stemma.nn.rope_scaling import RopeScaling, Unscaled
from stemma.nn.stack import Block, LanguageModel

Count = Annotated[int, Field(ge=1)]


class MistralConfig(StrictModel):
    """The numbers of a Mistral. What has no default follows from the width or the heads."""

    family: ClassVar[str] = "mistral"
    family_version: ClassVar[int] = 1

    width: Count = Field(description="width of the stream")
    depth: Count = Field(description="number of blocks")
    num_heads: Count = Field(description="query heads; divide width unless head_dim is given")
    num_kv_heads: Count = Field(description="key-value heads; must divide num_heads")
    head_dim: Count = Field(description="width of one head; default width / num_heads")
    hidden: Count = Field(description="inner width of the SwiGLU")
    vocab_size: Count = Field(description="rows of the embedding")
    context: Count = Field(default=32768, description="tokens the model is trained to see at once")
    window: Count | None = Field(default=None, description="positions that attention sees back")
    rope_base: float = Field(default=10_000.0, gt=0, description="base of the rotary frequencies")
    rope_scaling: RopeScaling = Field(default=Unscaled(), description="angles for longer texts")
    norm_eps: float = Field(default=1e-5, gt=0, description="epsilon inside RMSNorm")
    tied: bool = Field(default=False, description="the head shares the embedding's weights")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout while training")
    initial_std: float = Field(default=0.02, gt=0, description="deviation of the initial weights")

    _follow = model_validator(mode="before")(with_heads)

    @model_validator(mode="after")
    def _divides(self) -> "MistralConfig":
        rotary_heads(self.num_heads, self.num_kv_heads, self.head_dim)
        return self


def build(config: MistralConfig) -> LanguageModel:
    """Compose a Mistral from its numbers."""
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
        layers = {"attention": attention, "mlp": GLU(c.width, c.hidden, dropout=c.dropout)}
        return Block(c.width, layers, norm=rms_norm(c.norm_eps), residual=PreNorm())

    blocks = [block() for _ in range(c.depth)]
    return LanguageModel(c, blocks, norm=rms_norm(c.norm_eps), tied=c.tied, dropout=c.dropout)


# fmt: off
M7B = {"width": 4096, "depth": 32, "num_heads": 32, "num_kv_heads": 8, "hidden": 14336}
PRESETS: dict[str, dict[str, Any]] = {
    "mistral-7b":        {**M7B, "vocab_size": 32000, "window": 4096},
    "mistral-7b-v0.1":   {**M7B, "vocab_size": 32000, "window": 4096},
    "mistral-7b-v0.2":   {**M7B, "vocab_size": 32000, "rope_base": 1e6},
    "mistral-7b-v0.3":   {**M7B, "vocab_size": 32768, "rope_base": 1e6},
    "mistral-nemo-12b":  {"width": 5120, "depth": 40, "num_heads": 32, "num_kv_heads": 8, "head_dim": 128, "hidden": 14336, "vocab_size": 131072, "context": 131072, "rope_base": 1e6},  # noqa: E501
}
# fmt: on
