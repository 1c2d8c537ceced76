"""Linear Transformer (arXiv:2006.16236).

New against GPT-2: attention weighs keys by (elu(q) + 1) . (elu(k) + 1) instead of exp(q . k). So a
layer keeps two sums instead of all keys and values, and a token costs the same at every length.
The norm stands before the sublayers, as in GPT-2; the paper leaves its place open.
"""

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from stemma.core.config import StrictModel, multiple, with_hidden
from stemma.nn.attention import ALL_BIAS
from stemma.nn.embedding import LearnedPositions
from stemma.nn.fast_weight import Normalised
from stemma.nn.feature_map import EluPlusOne
from stemma.nn.linear_attention import LinearAttention
from stemma.nn.mlp import MLP, gelu_tanh
from stemma.nn.norm import layer_norm
from stemma.nn.residual import PreNorm
from stemma.nn.stack import Block, LanguageModel

Count = Annotated[int, Field(ge=1)]


class LinearConfig(StrictModel):
    """The numbers of a Linear Transformer. `hidden` is four widths if not given."""

    family: ClassVar[str] = "linear"
    family_version: ClassVar[int] = 1

    width: Count = Field(description="width of the stream")
    depth: Count = Field(description="number of blocks")
    num_heads: Count = Field(description="attention heads; must divide width")
    hidden: Count = Field(description="inner width of the MLP; default 4 width")
    vocab_size: Count = Field(description="rows of the embedding")
    context: Count = Field(default=1024, description="rows of the learned position table")
    norm_eps: float = Field(default=1e-5, gt=0, description="epsilon inside LayerNorm")
    tied: bool = Field(default=True, description="the head shares the embedding's weights")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout while training")
    initial_std: float = Field(default=0.02, gt=0, description="deviation of the initial weights")

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.width // self.num_heads

    _follow = model_validator(mode="before")(with_hidden)

    @model_validator(mode="after")
    def _divides(self) -> "LinearConfig":
        multiple("width", self.width, "num_heads", self.num_heads)
        return self


def build(config: LinearConfig) -> LanguageModel:
    """Compose a Linear Transformer from its numbers."""
    c = config

    def block() -> Block:
        attention = LinearAttention(
            c.width,
            c.num_heads,
            head_dim=c.head_dim,
            feature_map=EluPlusOne(),
            rule=Normalised(),
            bias=ALL_BIAS,
            dropout=c.dropout,
        )
        mlp = MLP(c.width, c.hidden, activation=gelu_tanh, bias=True, dropout=c.dropout)
        layers = {"attention": attention, "mlp": mlp}
        return Block(c.width, layers, norm=layer_norm(c.norm_eps), residual=PreNorm())

    return LanguageModel(
        c,
        [block() for _ in range(c.depth)],
        norm=layer_norm(c.norm_eps),
        position=LearnedPositions(c.context, c.width),
        tied=c.tied,
        dropout=c.dropout,
    )


# sections 4.2.1 and 4.2.2: images as rows of pixels, here with one of 256 values each
# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "linear-mnist":   {"width": 256, "depth": 8, "num_heads": 8, "vocab_size": 256, "context": 784},  # noqa: E501
    "linear-cifar10": {"width": 256, "depth": 16, "num_heads": 8, "vocab_size": 256, "context": 3072},  # noqa: E501
}
# fmt: on
