"""The Transformer's decoder alone (arXiv:1801.10198): the first language model of attention.

New against the Transformer: no encoder and no attention to a memory, one text instead of two.
`norms` says where they stand: after each sublayer (`post`, as in arXiv:1706.03762), before it
(`pre`, arXiv:2002.04745), or both ways in two streams (`dual`, ResiDual, arXiv:2304.14802).
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from stemma.core.config import StrictModel, multiple, with_hidden
from stemma.nn.attention import ALL_BIAS, Attention
from stemma.nn.embedding import Sinusoid
from stemma.nn.mlp import ACTIVATIONS, MLP
from stemma.nn.norm import layer_norm, no_norm
from stemma.nn.residual import PostNorm, PreNorm, ResiDual, Residual
from stemma.nn.stack import Block, LanguageModel

Count = Annotated[int, Field(ge=1)]
RESIDUALS: dict[str, Residual] = {"post": PostNorm(), "pre": PreNorm(), "dual": ResiDual()}


class DecoderConfig(StrictModel):
    """The numbers of a Transformer decoder. `hidden` is four widths if not given."""

    family: ClassVar[str] = "decoder"
    family_version: ClassVar[int] = 1

    width: Count = Field(description="width of the stream; even, for sines and cosines")
    depth: Count = Field(description="number of blocks")
    num_heads: Count = Field(description="attention heads; must divide width")
    hidden: Count = Field(description="inner width of the MLP; default 4 width")
    vocab_size: Count = Field(description="rows of the embedding")
    context: Count = Field(default=1024, description="tokens the model is trained to see at once")
    norms: Literal["post", "pre", "dual"] = Field(default="post", description="where norms stand")
    activation: Literal["relu", "gelu", "gelu_tanh", "silu"] = Field(
        default="relu", description="the function inside the MLP"
    )
    norm_eps: float = Field(default=1e-5, gt=0, description="epsilon inside LayerNorm")
    tied: bool = Field(default=True, description="the head shares the embedding's weights")
    scaled: bool = Field(default=True, description="embeddings are multiplied by sqrt(width)")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout while training")
    initial_std: float = Field(default=0.02, gt=0, description="deviation of the initial weights")

    _follow = model_validator(mode="before")(with_hidden)

    @model_validator(mode="after")
    def _divides(self) -> "DecoderConfig":
        multiple("width", self.width, "num_heads", self.num_heads)
        multiple("width", self.width, "2 (sines and cosines)", 2)
        return self


def build(config: DecoderConfig) -> LanguageModel:
    """Compose a Transformer decoder from its numbers."""
    c, norm = config, layer_norm(config.norm_eps)

    def block() -> Block:
        attention = Attention(
            c.width,
            c.num_heads,
            num_kv_heads=c.num_heads,
            head_dim=c.width // c.num_heads,
            bias=ALL_BIAS,
            dropout=c.dropout,
        )
        activation = ACTIVATIONS[c.activation]
        mlp = MLP(c.width, c.hidden, activation=activation, bias=True, dropout=c.dropout)
        layers = {"attention": attention, "mlp": mlp}
        return Block(c.width, layers, norm=norm, residual=RESIDUALS[c.norms])

    return LanguageModel(
        c,
        [block() for _ in range(c.depth)],
        norm=no_norm if c.norms == "post" else norm,
        position=Sinusoid(c.width, interleaved=True),
        embedding_scale=c.width**0.5 if c.scaled else 1.0,
        tied=c.tied,
        dropout=c.dropout,
    )


PRESETS: dict[str, dict[str, Any]] = {
    "decoder-base": {"width": 512, "depth": 6, "num_heads": 8, "vocab_size": 37000},
}
