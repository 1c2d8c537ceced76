"""Delta network (arXiv:2102.11174, section 4.2).

New against the additive fast weights: a key first reads what the memory has for it, and only the
difference to its value is written, by a rate that the layer learns (`beta`). So a value can be
replaced, and a memory that is full can still be corrected.
"""

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from stemma.core.config import StrictModel, multiple, with_hidden
from stemma.nn.attention import ALL_BIAS
from stemma.nn.embedding import Sinusoid
from stemma.nn.fast_weight import Delta
from stemma.nn.feature_map import DPFP, SumNormalised
from stemma.nn.linear_attention import LinearAttention
from stemma.nn.mlp import MLP, gelu_tanh
from stemma.nn.norm import layer_norm
from stemma.nn.residual import PreNorm
from stemma.nn.stack import Block, LanguageModel

Count = Annotated[int, Field(ge=1)]


class DeltaConfig(StrictModel):
    """The numbers of a Delta network. `hidden` is four widths if not given."""

    family: ClassVar[str] = "delta"
    family_version: ClassVar[int] = 1

    width: Count = Field(description="width of the stream")
    depth: Count = Field(description="number of blocks")
    num_heads: Count = Field(description="attention heads; must divide width")
    shifts: Count = Field(default=1, description="shifts of the features (DPFP's nu)")
    hidden: Count = Field(description="inner width of the MLP; default 4 width")
    vocab_size: Count = Field(description="rows of the embedding")
    context: Count = Field(default=256, description="tokens the model is trained to see at once")
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
    def _divides(self) -> "DeltaConfig":
        multiple("width", self.width, "num_heads", self.num_heads)
        multiple("width", self.width, "2 (sines and cosines)", 2)
        if self.shifts >= 2 * self.head_dim:
            numbers = f"shifts ({self.shifts}) must be below twice width / num_heads"
            raise ValueError(f"{numbers} ({self.head_dim}): others repeat them")
        return self


def build(config: DeltaConfig) -> LanguageModel:
    """Compose a Delta network from its numbers."""
    c = config

    def block() -> Block:
        attention = LinearAttention(
            c.width,
            c.num_heads,
            head_dim=c.head_dim,
            feature_map=SumNormalised(DPFP(c.shifts)),
            rule=Delta(),
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
        position=Sinusoid(c.width, interleaved=True),
        tied=c.tied,
        dropout=c.dropout,
    )


# section 6.3: WikiText-103 by words, of which there are 267,735
# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "delta-small":  {"width": 128, "depth": 16, "num_heads": 8, "hidden": 2048, "vocab_size": 267735, "context": 256, "dropout": 0.1},  # noqa: E501
    "delta-medium": {"width": 256, "depth": 16, "num_heads": 8, "hidden": 2048, "vocab_size": 267735, "context": 384, "dropout": 0.1},  # noqa: E501
}
# fmt: on
