"""Qwen 3 (arXiv:2505.09388).

New against Qwen 2: queries and keys of every head are normalised before they turn, the biases are
gone, and heads have a width of their own.
"""

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from stemma.core.config import StrictModel, rotary_heads, windowed_blocks, with_heads
from stemma.nn.attention import ALL_BIAS, NO_BIAS, Attention
from stemma.nn.mask import Causal, Mask, Window
from stemma.nn.mlp import GLU
from stemma.nn.norm import rms_norm
from stemma.nn.position import Rope
from stemma.nn.residual import PreNorm
from stemma.nn.rope_scaling import RopeScaling, Unscaled
from stemma.nn.stack import Block, LanguageModel

Count = Annotated[int, Field(ge=1)]
Blocks = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)]


class Qwen3Config(StrictModel):
    """The numbers of a Qwen 3. What has no default follows from the width or the heads."""

    family: ClassVar[str] = "qwen3"
    family_version: ClassVar[int] = 1

    width: Count = Field(description="width of the stream")
    depth: Count = Field(description="number of blocks")
    num_heads: Count = Field(description="query heads; divide width unless head_dim is given")
    num_kv_heads: Count = Field(description="key-value heads; must divide num_heads")
    head_dim: Count = Field(description="width of one head; default width / num_heads")
    hidden: Count = Field(description="inner width of the SwiGLU")
    vocab_size: Count = Field(description="rows of the embedding")
    context: Count = Field(default=32768, description="tokens the model is trained to see at once")
    window: Count | None = Field(default=None, description="positions that some blocks see back")
    windowed: Blocks = Field(default=(), description="blocks with the window, counted from 0")
    rope_base: float = Field(default=1e6, gt=0, description="base of the rotary frequencies")
    rope_scaling: RopeScaling = Field(default=Unscaled(), description="angles for longer texts")
    attention_bias: bool = Field(default=False, description="biases on all four of attention")
    norm_eps: float = Field(default=1e-6, gt=0, description="epsilon inside RMSNorm")
    tied: bool = Field(default=False, description="the head shares the embedding's weights")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout while training")
    initial_std: float = Field(default=0.02, gt=0, description="deviation of the initial weights")

    _follow = model_validator(mode="before")(with_heads)

    @model_validator(mode="after")
    def _divides(self) -> "Qwen3Config":
        rotary_heads(self.num_heads, self.num_kv_heads, self.head_dim)
        windowed_blocks(self.window, self.windowed, self.depth)
        return self


def build(config: Qwen3Config) -> LanguageModel:
    """Compose a Qwen 3 from its numbers."""
    c, rope = config, Rope(config.head_dim, config.rope_base, scaling=config.rope_scaling)

    def block(mask: Mask) -> Block:
        attention = Attention(
            c.width,
            c.num_heads,
            num_kv_heads=c.num_kv_heads,
            head_dim=c.head_dim,
            mask=mask,
            position=rope,
            bias=ALL_BIAS if c.attention_bias else NO_BIAS,
            qk_norm=rms_norm(c.norm_eps),
            dropout=c.dropout,
        )
        layers = {"attention": attention, "mlp": GLU(c.width, c.hidden, dropout=c.dropout)}
        return Block(c.width, layers, norm=rms_norm(c.norm_eps), residual=PreNorm())

    masks = [
        Causal() if c.window is None or i not in c.windowed else Window(c.window)
        for i in range(c.depth)
    ]
    blocks = [block(mask) for mask in masks]
    return LanguageModel(c, blocks, norm=rms_norm(c.norm_eps), tied=c.tied, dropout=c.dropout)


# fmt: off
SAME = {"num_kv_heads": 8, "head_dim": 128, "vocab_size": 151936, "context": 32768}
PRESETS: dict[str, dict[str, Any]] = {
    "qwen3-0.6b":  {"width": 1024, "depth": 28, "num_heads": 16, "hidden": 3072, "tied": True, **SAME},  # noqa: E501
    "qwen3-1.7b":  {"width": 2048, "depth": 28, "num_heads": 16, "hidden": 6144, "tied": True, **SAME},  # noqa: E501
    "qwen3-4b":    {"width": 2560, "depth": 36, "num_heads": 32, "hidden": 9728, "tied": True, **SAME},  # noqa: E501
    "qwen3-8b":    {"width": 4096, "depth": 36, "num_heads": 32, "hidden": 12288, **SAME},
    "qwen3-14b":   {"width": 5120, "depth": 40, "num_heads": 40, "hidden": 17408, **SAME},
    "qwen3-32b":   {"width": 5120, "depth": 64, "num_heads": 64, "hidden": 25600, **SAME},
}
# fmt: on
