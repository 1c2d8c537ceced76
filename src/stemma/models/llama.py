"""Llama (arXiv:2302.13971), Llama 2 (arXiv:2307.09288) and Llama 3 (arXiv:2407.21783).

New against GPT-2: rotary positions inside attention instead of a learned table, RMSNorm instead
of LayerNorm, a gated SwiGLU instead of the plain MLP, no biases; since Llama 2 several query heads
may share one key-value head, since Llama 3.1 the angles may be scaled for longer texts.
"""

from typing import Annotated, Any, ClassVar

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from stemma.core.config import StrictModel, multiple, rotary_heads
from stemma.nn.attention import ALL_BIAS, NO_BIAS, Attention
from stemma.nn.mlp import GLU
from stemma.nn.norm import rms_norm
from stemma.nn.position import Rope
from stemma.nn.residual import PreNorm
from stemma.nn.rope_scaling import RopeScaling, Unscaled
from stemma.nn.stack import Block, LanguageModel

Count = Annotated[int, Field(ge=1)]


class LlamaConfig(StrictModel):
    """The numbers of a Llama. What has no default follows from the width or the heads."""

    family: ClassVar[str] = "llama"
    family_version: ClassVar[int] = 1

    width: Count = Field(description="width of the stream")
    depth: Count = Field(description="number of blocks")
    num_heads: Count = Field(description="query heads; must divide width")
    num_kv_heads: Count = Field(description="key-value heads; must divide num_heads")
    head_dim: Count = Field(description="width of one head; default width / num_heads")
    hidden: Count = Field(description="inner width of the SwiGLU; default 8/3 width, rounded up")
    vocab_size: Count = Field(description="rows of the embedding")
    context: Count = Field(default=2048, description="tokens the model is trained to see at once")
    rope_base: float = Field(default=10_000.0, gt=0, description="base of the rotary frequencies")
    rope_scaling: RopeScaling = Field(default=Unscaled(), description="angles for longer texts")
    attention_bias: bool = Field(default=False, description="biases on all four of attention")
    mlp_bias: bool = Field(default=False, description="biases on all three of the SwiGLU")
    norm_eps: float = Field(default=1e-5, gt=0, description="epsilon inside RMSNorm")
    tied: bool = Field(default=False, description="the head shares the embedding's weights")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout while training")
    initial_std: float = Field(default=0.02, gt=0, description="deviation of the initial weights")

    @model_validator(mode="before")
    @classmethod
    def _follow(cls, numbers: Any) -> Any:
        # section 2 of the paper: 2/3 of 4 widths, rounded up to a multiple that suits the hardware
        if isinstance(numbers, dict):
            numbers = dict(numbers)
            width, heads = numbers.get("width"), numbers.get("num_heads")
            numbers.setdefault("num_kv_heads", heads)
            if isinstance(width, int):
                numbers.setdefault("hidden", -(-8 * width // 3 // 32) * 32)
            whole = isinstance(width, int) and isinstance(heads, int) and heads > 0
            numbers.setdefault("head_dim", max(1, width // heads) if whole else 1)
        return numbers

    @model_validator(mode="after")
    def _divides(self) -> "LlamaConfig":
        multiple("width", self.width, "num_heads", self.num_heads)
        rotary_heads(self.num_heads, self.num_kv_heads, self.head_dim)
        return self

    @model_serializer(mode="wrap")
    def _dump(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # 0.1.0 had none of these: at their defaults its models keep their fingerprints
        plain = {"rope_scaling": Unscaled(), "attention_bias": False, "mlp_bias": False}
        plain |= {"head_dim": self.width // self.num_heads}
        kept = {name for name, value in self if name not in plain or value != plain[name]}
        return {name: value for name, value in dump(self).items() if name in kept}


def build(config: LlamaConfig) -> LanguageModel:
    """Compose a Llama from its numbers."""
    c, rope = config, Rope(config.head_dim, config.rope_base, scaling=config.rope_scaling)

    def block() -> Block:
        attention = Attention(
            c.width,
            c.num_heads,
            num_kv_heads=c.num_kv_heads,
            head_dim=c.head_dim,
            position=rope,
            bias=ALL_BIAS if c.attention_bias else NO_BIAS,
            dropout=c.dropout,
        )
        mlp = GLU(c.width, c.hidden, bias=c.mlp_bias, dropout=c.dropout)
        layers = {"attention": attention, "mlp": mlp}
        return Block(c.width, layers, norm=rms_norm(c.norm_eps), residual=PreNorm())

    blocks = [block() for _ in range(c.depth)]
    return LanguageModel(c, blocks, norm=rms_norm(c.norm_eps), tied=c.tied, dropout=c.dropout)


# fmt: off
LLAMA3 = {"vocab_size": 128256, "rope_base": 5e5, "context": 8192}
BANDS = {"kind": "llama3", "factor": 8.0, "context": 8192}
PRESETS: dict[str, dict[str, Any]] = {
    "llama-7b":      {"width": 4096, "depth": 32, "num_heads": 32, "hidden": 11008, "vocab_size": 32000, "norm_eps": 1e-6},  # noqa: E501
    "llama-13b":     {"width": 5120, "depth": 40, "num_heads": 40, "hidden": 13824, "vocab_size": 32000, "norm_eps": 1e-6},  # noqa: E501
    "llama-33b":     {"width": 6656, "depth": 60, "num_heads": 52, "hidden": 17920, "vocab_size": 32000, "norm_eps": 1e-6},  # noqa: E501
    "llama-65b":     {"width": 8192, "depth": 80, "num_heads": 64, "hidden": 22016, "vocab_size": 32000, "norm_eps": 1e-6},  # noqa: E501
    "llama2-7b":     {"width": 4096, "depth": 32, "num_heads": 32, "hidden": 11008, "vocab_size": 32000, "context": 4096},  # noqa: E501
    "llama2-13b":    {"width": 5120, "depth": 40, "num_heads": 40, "hidden": 13824, "vocab_size": 32000, "context": 4096},  # noqa: E501
    "llama2-70b":    {"width": 8192, "depth": 80, "num_heads": 64, "num_kv_heads": 8, "hidden": 28672, "vocab_size": 32000, "context": 4096},  # noqa: E501
    "llama3-8b":     {"width": 4096, "depth": 32, "num_heads": 32, "num_kv_heads": 8, "hidden": 14336, **LLAMA3},  # noqa: E501
    "llama3-70b":    {"width": 8192, "depth": 80, "num_heads": 64, "num_kv_heads": 8, "hidden": 28672, **LLAMA3},  # noqa: E501
    "llama3.1-8b":   {"width": 4096, "depth": 32, "num_heads": 32, "num_kv_heads": 8, "hidden": 14336, **LLAMA3, "context": 131072, "rope_scaling": BANDS},  # noqa: E501
    "llama3.2-1b":   {"width": 2048, "depth": 16, "num_heads": 32, "num_kv_heads": 8, "hidden": 8192, **LLAMA3, "context": 131072, "rope_scaling": {**BANDS, "factor": 32.0}, "tied": True},  # noqa: E501
    "llama3.2-3b":   {"width": 3072, "depth": 28, "num_heads": 24, "num_kv_heads": 8, "hidden": 8192, **LLAMA3, "context": 131072, "rope_scaling": {**BANDS, "factor": 32.0}, "tied": True},  # noqa: E501
    "smollm2-135m":  {"width": 576, "depth": 30, "num_heads": 9, "num_kv_heads": 3, "hidden": 1536, "vocab_size": 49152, "context": 8192, "rope_base": 1e5, "tied": True},  # noqa: E501
    "smollm2-360m":  {"width": 960, "depth": 32, "num_heads": 15, "num_kv_heads": 5, "hidden": 2560, "vocab_size": 49152, "context": 8192, "rope_base": 1e5, "tied": True},  # noqa: E501
    "smollm2-1.7b":  {"width": 2048, "depth": 24, "num_heads": 32, "hidden": 8192, "vocab_size": 49152, "context": 8192, "rope_base": 1.3e5, "tied": True},  # noqa: E501
    "tinyllama":     {"width": 2048, "depth": 22, "num_heads": 32, "num_kv_heads": 4, "hidden": 5632, "vocab_size": 32000},  # noqa: E501
}
# fmt: on
