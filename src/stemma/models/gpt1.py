"""GPT-1 ("Improving language understanding by generative pre-training", 2018).

New against the decoder of the first Transformer (arXiv:1706.03762): no encoder to look at, learned
positions, and GELU in the MLP. The norm still stands after each sublayer, so none is needed before
the head.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from stemma.core.config import StrictModel, multiple
from stemma.nn.attention import ALL_BIAS, Attention
from stemma.nn.embedding import LearnedPositions
from stemma.nn.mlp import ACTIVATIONS, MLP
from stemma.nn.norm import layer_norm, no_norm
from stemma.nn.residual import PostNorm
from stemma.nn.stack import Block, LanguageModel

Count = Annotated[int, Field(ge=1)]


class GPT1Config(StrictModel):
    """The numbers of a GPT-1. The MLP is always four widths wide."""

    family: ClassVar[str] = "gpt1"
    family_version: ClassVar[int] = 1

    width: Count = Field(description="width of the stream")
    depth: Count = Field(description="number of blocks")
    num_heads: Count = Field(description="attention heads; must divide width")
    vocab_size: Count = Field(description="rows of the embedding")
    context: Count = Field(default=512, description="rows of the learned position table")
    activation: Literal["gelu_tanh", "relu", "silu"] = Field(
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

    @property
    def hidden(self) -> int:
        """Inner width of the MLP."""
        return 4 * self.width

    @model_validator(mode="after")
    def _divides(self) -> "GPT1Config":
        multiple("width", self.width, "num_heads", self.num_heads)
        return self


def build(config: GPT1Config) -> LanguageModel:
    """Compose a GPT-1 from its numbers."""
    c = config

    def block() -> Block:
        attention = Attention(
            c.width,
            c.num_heads,
            num_kv_heads=c.num_heads,
            head_dim=c.head_dim,
            bias=ALL_BIAS,
            dropout=c.dropout,
        )
        activation = ACTIVATIONS[c.activation]
        mlp = MLP(c.width, c.hidden, activation=activation, bias=True, dropout=c.dropout)
        layers = {"attention": attention, "mlp": mlp}
        return Block(c.width, layers, norm=layer_norm(c.norm_eps), residual=PostNorm())

    return LanguageModel(
        c,
        [block() for _ in range(c.depth)],
        norm=no_norm,
        position=LearnedPositions(c.context, c.width),
        tied=c.tied,
        dropout=c.dropout,
    )


PRESETS: dict[str, dict[str, Any]] = {
    "gpt1": {"width": 768, "depth": 12, "num_heads": 12, "vocab_size": 40478},
}
