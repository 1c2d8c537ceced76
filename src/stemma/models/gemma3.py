"""Gemma 3 (arXiv:2503.19786), the language model.

New against Llama: a norm on both sides of every sublayer, norms that multiply by 1 + weight, norms
of queries and keys, GELU in the gated MLP, and an embedding scaled by the root of the width. Five
blocks of six see a window and turn by angles of their own; the sixth sees all, at a larger base.
"""

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from stemma.core.config import StrictModel, multiple, rotary_heads, windowed_blocks, with_heads
from stemma.nn.attention import ALL_BIAS, NO_BIAS, Attention
from stemma.nn.mask import Causal, Window
from stemma.nn.mlp import GLU, gelu_tanh
from stemma.nn.norm import offset_rms_norm
from stemma.nn.position import Rope
from stemma.nn.residual import Sandwich
from stemma.nn.rope_scaling import RopeScaling, Unscaled
from stemma.nn.stack import Block, LanguageModel

Count = Annotated[int, Field(ge=1)]
Blocks = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)]


class Gemma3Config(StrictModel):
    """The numbers of a Gemma 3. What has no default follows from the width or the heads."""

    family: ClassVar[str] = "gemma3"
    family_version: ClassVar[int] = 1

    width: Count = Field(description="width of the stream")
    depth: Count = Field(description="number of blocks")
    num_heads: Count = Field(description="query heads; must divide width")
    num_kv_heads: Count = Field(description="key-value heads; must divide num_heads")
    head_dim: Count = Field(description="width of one head; default width / num_heads")
    query_scalar: Count = Field(description="its root divides the scores; default head_dim")
    hidden: Count = Field(description="inner width of the gated MLP")
    vocab_size: Count = Field(description="rows of the embedding")
    context: Count = Field(default=32768, description="tokens the model is trained to see at once")
    window: Count | None = Field(default=512, description="positions that windowed blocks see back")
    windowed: Blocks | None = Field(
        default=None, description="their places; default all but every 6th"
    )
    rope_base: float = Field(default=1e6, gt=0, description="base where a block sees all")
    rope_scaling: RopeScaling = Field(default=Unscaled(), description="angles where it sees all")
    local_rope_base: float = Field(default=1e4, gt=0, description="base of windowed blocks")
    local_rope_scaling: RopeScaling = Field(
        default=Unscaled(), description="angles of windowed blocks"
    )
    attention_bias: bool = Field(default=False, description="biases on all four of attention")
    norm_eps: float = Field(default=1e-6, gt=0, description="epsilon inside RMSNorm")
    tied: bool = Field(default=True, description="the head shares the embedding's weights")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout while training")
    initial_std: float = Field(default=0.02, gt=0, description="deviation of the initial weights")

    @model_validator(mode="before")
    @classmethod
    def _follow(cls, numbers: Any) -> Any:
        numbers = with_heads(numbers)
        if isinstance(numbers, dict) and "head_dim" in numbers:
            numbers = {"query_scalar": numbers["head_dim"], **numbers}
        return numbers

    @model_validator(mode="after")
    def _divides(self) -> "Gemma3Config":
        multiple("width", self.width, "num_heads", self.num_heads)
        rotary_heads(self.num_heads, self.num_kv_heads, self.head_dim)
        if self.window is None and self.windowed is None:
            raise ValueError("window is None, so no block can have it: give windowed=() as well")
        if self.windowed is not None:
            windowed_blocks(self.window, self.windowed, self.depth)
        return self

    def sees(self, index: int) -> int | None:
        """The window of a block by its place, None where it sees all."""
        local = (index + 1) % 6 if self.windowed is None else index in self.windowed
        return self.window if local else None


def build(config: Gemma3Config) -> LanguageModel:
    """Compose a Gemma 3 from its numbers."""
    c, norm = config, offset_rms_norm(config.norm_eps)
    far = Rope(c.head_dim, c.rope_base, scaling=c.rope_scaling)
    near = Rope(c.head_dim, c.local_rope_base, scaling=c.local_rope_scaling)

    def block(window: int | None) -> Block:
        attention = Attention(
            c.width,
            c.num_heads,
            num_kv_heads=c.num_kv_heads,
            head_dim=c.head_dim,
            mask=Causal() if window is None else Window(window),
            position=far if window is None else near,
            bias=ALL_BIAS if c.attention_bias else NO_BIAS,
            dropout=c.dropout,
            scale=c.query_scalar**-0.5,
            qk_norm=norm,
        )
        mlp = GLU(c.width, c.hidden, activation=gelu_tanh, dropout=c.dropout)
        return Block(c.width, {"attention": attention, "mlp": mlp}, norm=norm, residual=Sandwich())

    blocks = [block(c.sees(index)) for index in range(c.depth)]
    scale = c.width**0.5
    return LanguageModel(
        c, blocks, norm=norm, tied=c.tied, embedding_scale=scale, dropout=c.dropout
    )


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "gemma3-270m":  {"width": 640, "depth": 18, "num_heads": 4, "num_kv_heads": 1, "head_dim": 256, "hidden": 2048, "vocab_size": 262144},  # noqa: E501
    "gemma3-1b":    {"width": 1152, "depth": 26, "num_heads": 4, "num_kv_heads": 1, "head_dim": 256, "hidden": 6912, "vocab_size": 262144},  # noqa: E501
}
# fmt: on
