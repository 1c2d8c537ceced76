"""Qwen 2 and 2.5 (arXiv:2407.10671, arXiv:2412.15115).

New against Llama: query, key and value have biases, which help with texts longer than trained on,
and the last blocks may attend through a window (the published models do not).
"""

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from stemma.core.config import StrictModel, rotary_heads, windowed_blocks, with_heads
from stemma.nn.attention import QKV_BIAS, Attention
from stemma.nn.mask import Causal, Mask, Window
from stemma.nn.mlp import GLU
from stemma.nn.norm import rms_norm
from stemma.nn.position import Rope
from stemma.nn.residual import PreNorm
from stemma.nn.rope_scaling import RopeScaling, Unscaled
from stemma.nn.stack import Block, LanguageModel

Count = Annotated[int, Field(ge=1)]
Blocks = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)]


class Qwen2Config(StrictModel):
    """The numbers of a Qwen 2. What has no default follows from the width or the heads."""

    family: ClassVar[str] = "qwen2"
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
    norm_eps: float = Field(default=1e-6, gt=0, description="epsilon inside RMSNorm")
    tied: bool = Field(default=False, description="the head shares the embedding's weights")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout while training")
    initial_std: float = Field(default=0.02, gt=0, description="deviation of the initial weights")

    _follow = model_validator(mode="before")(with_heads)

    @model_validator(mode="after")
    def _divides(self) -> "Qwen2Config":
        rotary_heads(self.num_heads, self.num_kv_heads, self.head_dim)
        windowed_blocks(self.window, self.windowed, self.depth)
        return self


def build(config: Qwen2Config) -> LanguageModel:
    """Compose a Qwen 2 from its numbers."""
    c, rope = config, Rope(config.head_dim, config.rope_base, scaling=config.rope_scaling)

    def block(mask: Mask) -> Block:
        attention = Attention(
            c.width,
            c.num_heads,
            num_kv_heads=c.num_kv_heads,
            head_dim=c.head_dim,
            mask=mask,
            position=rope,
            bias=QKV_BIAS,
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
B05 = {"width": 896, "depth": 24, "num_heads": 14, "num_kv_heads": 2, "hidden": 4864, "vocab_size": 151936, "tied": True}  # noqa: E501
B15 = {"width": 1536, "depth": 28, "num_heads": 12, "num_kv_heads": 2, "hidden": 8960, "vocab_size": 151936, "tied": True}  # noqa: E501
B7 = {"width": 3584, "depth": 28, "num_heads": 28, "num_kv_heads": 4, "hidden": 18944, "vocab_size": 152064}  # noqa: E501
PRESETS: dict[str, dict[str, Any]] = {
    "qwen2-0.5b":    {**B05, "context": 131072},
    "qwen2-1.5b":    {**B15, "context": 131072},
    "qwen2-7b":      {**B7, "context": 131072},
    "qwen2.5-0.5b":  B05,
    "qwen2.5-1.5b":  {**B15, "context": 131072},
    "qwen2.5-3b":    {"width": 2048, "depth": 36, "num_heads": 16, "num_kv_heads": 2, "hidden": 11008, "vocab_size": 151936, "tied": True},  # noqa: E501
    "qwen2.5-7b":    {**B7, "context": 131072},
    "qwen2.5-14b":   {"width": 5120, "depth": 48, "num_heads": 40, "num_kv_heads": 8, "hidden": 13824, "vocab_size": 152064, "context": 131072, "norm_eps": 1e-5},  # noqa: E501
    "qwen2.5-32b":   {"width": 5120, "depth": 64, "num_heads": 40, "num_kv_heads": 8, "hidden": 27648, "vocab_size": 152064, "context": 131072, "norm_eps": 1e-5},  # noqa: E501
}
# fmt: on
