"""ChatGLM2 and 3, and GLM-4 (arXiv:2406.12793, section 2): the GLM line since it is causal.

New against Llama: only the first half of a head's features turns, each with its neighbour, as the
paper of rotary positions has it; query, key and value have biases. A few key-value heads serve
all query heads.
"""

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from stemma.core.config import StrictModel, multiple, with_heads
from stemma.nn.attention import NO_BIAS, QKV_BIAS, Attention
from stemma.nn.mlp import GLU
from stemma.nn.norm import rms_norm
from stemma.nn.position import Rope
from stemma.nn.residual import PreNorm
from stemma.nn.rope_scaling import RopeScaling, Unscaled
from stemma.nn.stack import Block, LanguageModel

Count = Annotated[int, Field(ge=1)]


class ChatGLM2Config(StrictModel):
    """The numbers of a ChatGLM2. What has no default follows from the width or the heads."""

    family: ClassVar[str] = "chatglm2"
    family_version: ClassVar[int] = 1

    width: Count = Field(description="width of the stream")
    depth: Count = Field(description="number of blocks")
    num_heads: Count = Field(description="query heads; divide width unless head_dim is given")
    num_kv_heads: Count = Field(description="key-value heads; must divide num_heads")
    head_dim: Count = Field(description="width of one head; default width / num_heads")
    rotary_dim: Count = Field(description="features of a head that turn; default half of head_dim")
    hidden: Count = Field(description="inner width of the SwiGLU")
    vocab_size: Count = Field(description="rows of the embedding")
    context: Count = Field(default=32768, description="tokens the model is trained to see at once")
    rope_base: float = Field(default=10_000.0, gt=0, description="base of the rotary frequencies")
    rope_scaling: RopeScaling = Field(default=Unscaled(), description="angles for longer texts")
    qkv_bias: bool = Field(default=True, description="biases on query, key and value")
    norm_eps: float = Field(default=1e-5, gt=0, description="epsilon inside RMSNorm")
    tied: bool = Field(default=False, description="the head shares the embedding's weights")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout while training")
    initial_std: float = Field(default=0.02, gt=0, description="deviation of the initial weights")

    @model_validator(mode="before")
    @classmethod
    def _follow(cls, numbers: Any) -> Any:
        numbers = with_heads(numbers)
        if isinstance(numbers, dict) and isinstance(head_dim := numbers.get("head_dim"), int):
            numbers = {"rotary_dim": max(1, head_dim // 2), **numbers}
        return numbers

    @model_validator(mode="after")
    def _divides(self) -> "ChatGLM2Config":
        multiple("num_heads", self.num_heads, "num_kv_heads", self.num_kv_heads)
        multiple("rotary_dim", self.rotary_dim, "2 (rotary pairs)", 2)
        if self.rotary_dim > self.head_dim:
            what = f"rotary_dim ({self.rotary_dim}) must be at most head_dim ({self.head_dim})"
            raise ValueError(what)
        return self


def build(config: ChatGLM2Config) -> LanguageModel:
    """Compose a ChatGLM2 from its numbers."""
    c = config
    rope = Rope(c.rotary_dim, c.rope_base, interleaved=True, scaling=c.rope_scaling)

    def block() -> Block:
        attention = Attention(
            c.width,
            c.num_heads,
            num_kv_heads=c.num_kv_heads,
            head_dim=c.head_dim,
            position=rope,
            bias=QKV_BIAS if c.qkv_bias else NO_BIAS,
            dropout=c.dropout,
        )
        layers = {"attention": attention, "mlp": GLU(c.width, c.hidden, dropout=c.dropout)}
        return Block(c.width, layers, norm=rms_norm(c.norm_eps), residual=PreNorm())

    blocks = [block() for _ in range(c.depth)]
    return LanguageModel(c, blocks, norm=rms_norm(c.norm_eps), tied=c.tied, dropout=c.dropout)


# fmt: off
B6 = {"width": 4096, "depth": 28, "num_heads": 32, "num_kv_heads": 2, "hidden": 13696, "vocab_size": 65024}  # noqa: E501
PRESETS: dict[str, dict[str, Any]] = {
    "chatglm2-6b":    B6,
    "chatglm3-6b":    {**B6, "context": 8192},
    "glm-4-9b-chat":  {**B6, "depth": 40, "vocab_size": 151552, "context": 131072, "rope_base": 5e6, "norm_eps": 1.5625e-7},  # noqa: E501
}
# fmt: on
