"""Qwen (arXiv:2309.16609), the first of its name.

New against Llama: query, key and value have biases, and beyond the trained context the base of
the angles grows in steps with the text. The published models also sharpen scores beyond that
length; within it the factor is one, and it is not computed here.
"""

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from stemma.core.config import StrictModel, multiple
from stemma.nn.attention import QKV_BIAS, Attention
from stemma.nn.mlp import GLU
from stemma.nn.norm import rms_norm
from stemma.nn.position import Rope
from stemma.nn.residual import PreNorm
from stemma.nn.rope_scaling import DoublingNTK, Unscaled
from stemma.nn.stack import Block, LanguageModel

Count = Annotated[int, Field(ge=1)]
Scaling = Annotated[Unscaled | DoublingNTK, Field(discriminator="kind")]


class QwenConfig(StrictModel):
    """The numbers of a Qwen."""

    family: ClassVar[str] = "qwen"
    family_version: ClassVar[int] = 1

    width: Count = Field(description="width of the stream")
    depth: Count = Field(description="number of blocks")
    num_heads: Count = Field(description="attention heads; must divide width")
    hidden: Count = Field(description="inner width of the SwiGLU")
    vocab_size: Count = Field(description="rows of the embedding")
    context: Count = Field(default=8192, description="tokens the model is trained to see at once")
    rope_base: float = Field(default=10_000.0, gt=0, description="base of the rotary frequencies")
    rope_scaling: Scaling = Field(default=Unscaled(), description="angles for longer texts")
    norm_eps: float = Field(default=1e-6, gt=0, description="epsilon inside RMSNorm")
    tied: bool = Field(default=False, description="the head shares the embedding's weights")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout while training")
    initial_std: float = Field(default=0.02, gt=0, description="deviation of the initial weights")

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.width // self.num_heads

    @model_validator(mode="after")
    def _divides(self) -> "QwenConfig":
        multiple("width", self.width, "num_heads", self.num_heads)
        multiple("width / num_heads", self.head_dim, "2 (rotary pairs)", 2)
        return self


def build(config: QwenConfig) -> LanguageModel:
    """Compose a Qwen from its numbers."""
    c, rope = config, Rope(config.head_dim, config.rope_base, scaling=config.rope_scaling)

    def block() -> Block:
        attention = Attention(
            c.width,
            c.num_heads,
            num_kv_heads=c.num_heads,
            head_dim=c.head_dim,
            position=rope,
            bias=QKV_BIAS,
            dropout=c.dropout,
        )
        layers = {"attention": attention, "mlp": GLU(c.width, c.hidden, dropout=c.dropout)}
        return Block(c.width, layers, norm=rms_norm(c.norm_eps), residual=PreNorm())

    blocks = [block() for _ in range(c.depth)]
    return LanguageModel(c, blocks, norm=rms_norm(c.norm_eps), tied=c.tied, dropout=c.dropout)


# fmt: off
STEPS_8K, STEPS_2K = {"kind": "doubling", "context": 8192}, {"kind": "doubling", "context": 2048}
PRESETS: dict[str, dict[str, Any]] = {
    "qwen-1.8b":  {"width": 2048, "depth": 24, "num_heads": 16, "hidden": 5504, "vocab_size": 151936, "rope_scaling": STEPS_8K},  # noqa: E501
    "qwen-7b":    {"width": 4096, "depth": 32, "num_heads": 32, "hidden": 11008, "vocab_size": 151936, "rope_scaling": STEPS_8K},  # noqa: E501
    "qwen-14b":   {"width": 5120, "depth": 40, "num_heads": 40, "hidden": 13696, "vocab_size": 152064, "context": 2048, "rope_scaling": STEPS_2K},  # noqa: E501
}
# fmt: on
