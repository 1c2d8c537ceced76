"""Llama (arXiv:2302.13971) and Llama 2 (arXiv:2307.09288).

New against GPT-2: rotary positions inside attention instead of a learned table, RMSNorm instead
of LayerNorm, a gated SwiGLU instead of the plain MLP, no biases; since Llama 2 several query heads
may share one key-value head.
"""

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from stemma.core.config import StrictModel, multiple
from stemma.nn.attention import Attention
from stemma.nn.mlp import GLU
from stemma.nn.norm import rms_norm
from stemma.nn.position import Rope
from stemma.nn.residual import PreNorm
from stemma.nn.stack import Block, LanguageModel

Count = Annotated[int, Field(ge=1)]


class LlamaConfig(StrictModel):
    """The numbers of a Llama. `num_kv_heads` and `hidden` follow from the others if not given."""

    family: ClassVar[str] = "llama"
    family_version: ClassVar[int] = 1

    width: Count = Field(description="width of the stream")
    depth: Count = Field(description="number of blocks")
    num_heads: Count = Field(description="query heads; must divide width")
    num_kv_heads: Count = Field(description="key-value heads; must divide num_heads")
    hidden: Count = Field(description="inner width of the SwiGLU; default 8/3 width, rounded up")
    vocab_size: Count = Field(description="rows of the embedding")
    context: Count = Field(default=2048, description="tokens the model is trained to see at once")
    rope_base: float = Field(default=10_000.0, gt=0, description="base of the rotary frequencies")
    norm_eps: float = Field(default=1e-5, gt=0, description="epsilon inside RMSNorm")
    tied: bool = Field(default=False, description="the head shares the embedding's weights")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout while training")
    initial_std: float = Field(default=0.02, gt=0, description="deviation of the initial weights")

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.width // self.num_heads

    @model_validator(mode="before")
    @classmethod
    def _follow(cls, numbers: Any) -> Any:
        # section 2 of the paper: 2/3 of 4 widths, rounded up to a multiple that suits the hardware
        if isinstance(numbers, dict):
            numbers = dict(numbers)
            if "num_heads" in numbers:
                numbers.setdefault("num_kv_heads", numbers["num_heads"])
            if isinstance(numbers.get("width"), int):
                numbers.setdefault("hidden", -(-8 * numbers["width"] // 3 // 32) * 32)
        return numbers

    @model_validator(mode="after")
    def _divides(self) -> "LlamaConfig":
        multiple("width", self.width, "num_heads", self.num_heads)
        multiple("num_heads", self.num_heads, "num_kv_heads", self.num_kv_heads)
        multiple("width / num_heads", self.head_dim, "2 (rotary pairs)", 2)
        return self


def build(config: LlamaConfig) -> LanguageModel:
    """Compose a Llama from its numbers."""
    c, rope = config, Rope(config.head_dim, config.rope_base)

    def block() -> Block:
        attention = Attention(
            c.width,
            c.num_heads,
            num_kv_heads=c.num_kv_heads,
            head_dim=c.head_dim,
            position=rope,
            dropout=c.dropout,
        )
        mlp = GLU(c.width, c.hidden, dropout=c.dropout)
        layers = {"attention": attention, "mlp": mlp}
        return Block(c.width, layers, norm=rms_norm(c.norm_eps), residual=PreNorm())

    blocks = [block() for _ in range(c.depth)]
    return LanguageModel(c, blocks, norm=rms_norm(c.norm_eps), tied=c.tied, dropout=c.dropout)


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "llama-7b":      {"width": 4096, "depth": 32, "num_heads": 32, "hidden": 11008, "vocab_size": 32000, "norm_eps": 1e-6},  # noqa: E501
    "llama-13b":     {"width": 5120, "depth": 40, "num_heads": 40, "hidden": 13824, "vocab_size": 32000, "norm_eps": 1e-6},  # noqa: E501
    "llama2-7b":     {"width": 4096, "depth": 32, "num_heads": 32, "hidden": 11008, "vocab_size": 32000, "context": 4096},  # noqa: E501
    "llama2-70b":    {"width": 8192, "depth": 80, "num_heads": 64, "num_kv_heads": 8, "hidden": 28672, "vocab_size": 32000, "context": 4096},  # noqa: E501
    "smollm2-135m":  {"width": 576, "depth": 30, "num_heads": 9, "num_kv_heads": 3, "hidden": 1536, "vocab_size": 49152, "context": 8192, "rope_base": 1e5, "tied": True},  # noqa: E501
}
# fmt: on
