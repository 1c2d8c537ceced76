"""BLOOM (arXiv:2211.05100).

New against GPT-2: no position is added to the embedding; attention itself prefers what is near, by
linear biases with a slope for each head (ALiBi), and the embedding is normalised before the first
block, which kept the largest run stable (section 3.2.2 of the paper).
"""

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from stemma.core.config import StrictModel, multiple
from stemma.nn.attention import ALL_BIAS, Attention
from stemma.nn.mlp import MLP, gelu_tanh
from stemma.nn.norm import layer_norm
from stemma.nn.position import Alibi
from stemma.nn.residual import PreNorm
from stemma.nn.stack import Block, LanguageModel

Count = Annotated[int, Field(ge=1)]


class BloomConfig(StrictModel):
    """The numbers of a BLOOM. The MLP is always four widths wide."""

    family: ClassVar[str] = "bloom"
    family_version: ClassVar[int] = 1

    width: Count = Field(description="width of the stream")
    depth: Count = Field(description="number of blocks")
    num_heads: Count = Field(description="attention heads; must divide width")
    vocab_size: Count = Field(description="rows of the embedding")
    context: Count = Field(default=2048, description="tokens the model is trained to see at once")
    norm_eps: float = Field(default=1e-5, gt=0, description="epsilon inside LayerNorm")
    tied: bool = Field(default=True, description="the head shares the embedding's weights")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout while training")
    initial_std: float = Field(default=0.02, gt=0, description="deviation of the initial weights")

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.width // self.num_heads

    @property
    def hidden(self) -> int:
        """Inner width of the MLP."""
        return 4 * self.width

    @model_validator(mode="after")
    def _divides(self) -> "BloomConfig":
        multiple("width", self.width, "num_heads", self.num_heads)
        return self


def build(config: BloomConfig) -> LanguageModel:
    """Compose a BLOOM from its numbers."""
    c, norm = config, layer_norm(config.norm_eps)

    def block() -> Block:
        attention = Attention(
            c.width,
            c.num_heads,
            num_kv_heads=c.num_heads,
            head_dim=c.head_dim,
            position=Alibi(c.num_heads),
            bias=ALL_BIAS,
            dropout=c.dropout,
        )
        mlp = MLP(c.width, c.hidden, activation=gelu_tanh, bias=True, dropout=c.dropout)
        return Block(c.width, {"attention": attention, "mlp": mlp}, norm=norm, residual=PreNorm())

    return LanguageModel(
        c,
        [block() for _ in range(c.depth)],
        norm=norm,
        embedding_norm=norm,
        tied=c.tied,
        dropout=c.dropout,
    )


PRESETS: dict[str, dict[str, Any]] = {
    "bloom-560m": {"width": 1024, "depth": 24, "num_heads": 16, "vocab_size": 250880},
    "bloom-1b1": {"width": 1536, "depth": 24, "num_heads": 16, "vocab_size": 250880},
    "bloom-1b7": {"width": 2048, "depth": 24, "num_heads": 16, "vocab_size": 250880},
    "bloom-3b": {"width": 2560, "depth": 30, "num_heads": 32, "vocab_size": 250880},
    "bloom-7b1": {"width": 4096, "depth": 30, "num_heads": 32, "vocab_size": 250880},
    "bloom": {"width": 14336, "depth": 70, "num_heads": 112, "vocab_size": 250880},
}
