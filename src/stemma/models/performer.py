"""Performer (arXiv:2009.14794), the causal one.

New against the Linear Transformer: the features are random and positive (FAVOR+), and the weights
that they give are those of softmax attention on average, the closer the more features there are.
Each layer draws its directions once, from `feature_seed`; the paper draws them anew now and then.
"""

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from stemma.core.config import StrictModel, multiple, with_hidden
from stemma.nn.attention import ALL_BIAS
from stemma.nn.embedding import LearnedPositions
from stemma.nn.fast_weight import Normalised
from stemma.nn.feature_map import Favor
from stemma.nn.linear_attention import LinearAttention
from stemma.nn.mlp import MLP, gelu_tanh
from stemma.nn.norm import layer_norm
from stemma.nn.residual import PreNorm
from stemma.nn.stack import Block, LanguageModel

Count = Annotated[int, Field(ge=1)]


class PerformerConfig(StrictModel):
    """The numbers of a Performer. `hidden` is four widths if not given."""

    family: ClassVar[str] = "performer"
    family_version: ClassVar[int] = 1

    width: Count = Field(description="width of the stream")
    depth: Count = Field(description="number of blocks")
    num_heads: Count = Field(description="attention heads; must divide width")
    features: Count = Field(default=256, description="random features of a head (m)")
    feature_seed: int = Field(default=0, description="where their directions are drawn from")
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
    def _divides(self) -> "PerformerConfig":
        multiple("width", self.width, "num_heads", self.num_heads)
        return self


def build(config: PerformerConfig) -> LanguageModel:
    """Compose a Performer from its numbers."""
    c = config

    def block(layer: int) -> Block:
        attention = LinearAttention(
            c.width,
            c.num_heads,
            head_dim=c.head_dim,
            feature_map=Favor(c.features, c.feature_seed, layer),
            rule=Normalised(),
            bias=ALL_BIAS,
            dropout=c.dropout,
        )
        mlp = MLP(c.width, c.hidden, activation=gelu_tanh, bias=True, dropout=c.dropout)
        layers = {"attention": attention, "mlp": mlp}
        return Block(c.width, layers, norm=layer_norm(c.norm_eps), residual=PreNorm())

    return LanguageModel(
        c,
        [block(layer) for layer in range(c.depth)],
        norm=layer_norm(c.norm_eps),
        position=LearnedPositions(c.context, c.width),
        tied=c.tied,
        dropout=c.dropout,
    )


# section 4.1 with the vocabulary of PG-19 (appendix A.1.1), and section 4.4, proteins; the paper
# does not say how many letters those have: 25 for residues and five signs are ours
# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "performer":        {"width": 512, "depth": 6, "num_heads": 8, "vocab_size": 32768, "context": 8192, "dropout": 0.1},  # noqa: E501
    "performer-trembl": {"width": 512, "depth": 36, "num_heads": 8, "hidden": 1024, "vocab_size": 30, "context": 8192, "dropout": 0.1},  # noqa: E501
}
# fmt: on
