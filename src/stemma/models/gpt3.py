"""GPT-3 (arXiv:2005.14165), and GPT-Neo, its open remake.

New against GPT-2: blocks look back by turns as far as there is text, and through a narrow band of
the last tokens only (section 2.1 of the paper, after arXiv:1904.10509). The paper does not say how
wide its band is; 256 is that of GPT-Neo.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from stemma.core.config import StrictModel, multiple, with_hidden
from stemma.nn.attention import Attention
from stemma.nn.embedding import LearnedPositions
from stemma.nn.mask import Causal, Window
from stemma.nn.mlp import ACTIVATIONS, MLP
from stemma.nn.norm import layer_norm
from stemma.nn.residual import PreNorm
from stemma.nn.stack import Block, LanguageModel

Count = Annotated[int, Field(ge=1)]
Windows = Annotated[
    tuple[Count | None, ...],
    Field(min_length=1),
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
]


class GPT3Config(StrictModel):
    """The numbers of a GPT-3. `hidden` and `score_scale` follow from the others if not given.

    `windows` are the bands of the blocks one after the other, begun anew where they end: with
    `(None, 256)` every second block sees 256 tokens, its own among them, and the others see all.
    """

    family: ClassVar[str] = "gpt3"
    family_version: ClassVar[int] = 1

    width: Count = Field(description="width of the stream")
    depth: Count = Field(description="number of blocks")
    num_heads: Count = Field(description="attention heads; must divide width")
    hidden: Count = Field(description="inner width of the MLP; default 4 width")
    vocab_size: Count = Field(description="rows of the embedding")
    context: Count = Field(default=2048, description="rows of the learned position table")
    windows: Windows = Field(default=(None, 256), description="tokens seen back; null for all")
    score_scale: float = Field(gt=0, description="multiplies the scores; default head width^-0.5")
    qkv_bias: bool = Field(default=True, description="query, key and value have biases")
    activation: Literal["gelu_tanh", "gelu", "relu", "silu"] = Field(
        default="gelu_tanh", description="what stands between the MLP's two layers"
    )
    norm_eps: float = Field(default=1e-5, gt=0, description="epsilon inside LayerNorm")
    tied: bool = Field(default=True, description="the head shares the embedding's weights")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout while training")
    initial_std: float = Field(default=0.02, gt=0, description="deviation of the initial weights")

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.width // self.num_heads

    @model_validator(mode="before")
    @classmethod
    def _follow(cls, numbers: Any) -> Any:
        if isinstance(numbers, dict) and isinstance(width := numbers.get("width"), int):
            heads = numbers.get("num_heads")
            known = isinstance(heads, int) and 0 < heads <= width
            head_dim = width // int(heads or 1) if known else 1
            numbers = {"score_scale": head_dim**-0.5, **numbers}
        return with_hidden(numbers)

    @model_validator(mode="after")
    def _divides(self) -> "GPT3Config":
        multiple("width", self.width, "num_heads", self.num_heads)
        if len(self.windows) > self.depth:
            raise ValueError(f"windows has {len(self.windows)} numbers for depth {self.depth}")
        return self


def build(config: GPT3Config) -> LanguageModel:
    """Compose a GPT-3 from its numbers."""
    c, norm = config, layer_norm(config.norm_eps)

    def block(window: int | None) -> Block:
        attention = Attention(
            c.width,
            c.num_heads,
            num_kv_heads=c.num_heads,
            head_dim=c.head_dim,
            mask=Causal() if window is None else Window(window),
            bias=(c.qkv_bias, c.qkv_bias, c.qkv_bias, True),
            dropout=c.dropout,
            scale=c.score_scale,
        )
        activation = ACTIVATIONS[c.activation]
        mlp = MLP(c.width, c.hidden, activation=activation, bias=True, dropout=c.dropout)
        return Block(c.width, {"attention": attention, "mlp": mlp}, norm=norm, residual=PreNorm())

    blocks = [block(c.windows[index % len(c.windows)]) for index in range(c.depth)]
    position = LearnedPositions(c.context, c.width)
    return LanguageModel(c, blocks, norm=norm, position=position, tied=c.tied, dropout=c.dropout)


# table 2.1, but for two slips: 24 heads of 128 are not 2048 wide, and 40 are 5120, not 5140
# fmt: off
NEO = {"vocab_size": 50257, "score_scale": 1.0, "qkv_bias": False}
PRESETS: dict[str, dict[str, Any]] = {
    "gpt3-small":   {"width": 768, "depth": 12, "num_heads": 12, "vocab_size": 50257},
    "gpt3-medium":  {"width": 1024, "depth": 24, "num_heads": 16, "vocab_size": 50257},
    "gpt3-large":   {"width": 1536, "depth": 24, "num_heads": 16, "vocab_size": 50257},
    "gpt3-xl":      {"width": 2048, "depth": 24, "num_heads": 16, "vocab_size": 50257},
    "gpt3-2.7b":    {"width": 2560, "depth": 32, "num_heads": 32, "vocab_size": 50257},
    "gpt3-6.7b":    {"width": 4096, "depth": 32, "num_heads": 32, "vocab_size": 50257},
    "gpt3-13b":     {"width": 5120, "depth": 40, "num_heads": 40, "vocab_size": 50257},
    "gpt3-175b":    {"width": 12288, "depth": 96, "num_heads": 96, "vocab_size": 50257},
    "gpt-neo-125m": {"width": 768, "depth": 12, "num_heads": 12, **NEO},
    "gpt-neo-1.3b": {"width": 2048, "depth": 24, "num_heads": 16, **NEO},
    "gpt-neo-2.7b": {"width": 2560, "depth": 32, "num_heads": 20, **NEO},
}
# fmt: on
