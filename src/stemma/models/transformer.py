"""The Transformer (arXiv:1706.03762): an encoder, and a decoder that attends to it.

New against Bahdanau's network: no recurrence at all. Attention reads the sentence itself, the
source and the target alike, and sines tell the places apart. `norms` says where they stand: after
each sublayer (`post`, the paper), before it (`pre`, arXiv:2002.04745), or both ways in two streams
(`dual`, ResiDual, arXiv:2304.14802).
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from stemma.core.config import StrictModel, multiple, with_hidden
from stemma.nn.attention import ALL_BIAS, Attention, CrossAttention
from stemma.nn.embedding import Sinusoid
from stemma.nn.encoder_decoder import EncoderDecoder, Tower
from stemma.nn.head import Head
from stemma.nn.mask import Causal, Full
from stemma.nn.mlp import ACTIVATIONS, MLP
from stemma.nn.norm import layer_norm, no_norm
from stemma.nn.residual import PostNorm, PreNorm, ResiDual, Residual
from stemma.nn.stack import Block

Count = Annotated[int, Field(ge=1)]
RESIDUALS: dict[str, Residual] = {"post": PostNorm(), "pre": PreNorm(), "dual": ResiDual()}


class TransformerConfig(StrictModel):
    """The numbers of a Transformer. Those of the encoder follow the decoder's if not given."""

    family: ClassVar[str] = "transformer"
    family_version: ClassVar[int] = 1

    width: Count = Field(description="width of the stream; even, for sines and cosines")
    depth: Count = Field(description="number of the decoder's blocks")
    num_heads: Count = Field(description="the decoder's attention heads; must divide width")
    hidden: Count = Field(description="inner width of the decoder's MLP; default 4 width")
    encoder_depth: Count = Field(description="number of the encoder's blocks; default depth")
    encoder_num_heads: Count = Field(description="the encoder's heads; default num_heads")
    encoder_hidden: Count = Field(description="inner width of the encoder's MLP; default hidden")
    vocab_size: Count = Field(description="rows of the target's embedding")
    source_vocab_size: Count | None = Field(
        default=None, description="rows of the source's own embedding; none where both share one"
    )
    context: Count = Field(default=512, description="tokens of a sentence, at most, in decoding")
    norms: Literal["post", "pre", "dual"] = Field(default="post", description="where norms stand")
    activation: Literal["relu", "gelu", "gelu_tanh", "silu"] = Field(
        default="relu", description="the function inside the MLP"
    )
    interleaved: bool = Field(default=True, description="sines and cosines alternate, not halves")
    norm_eps: float = Field(default=1e-5, gt=0, description="epsilon inside LayerNorm")
    tied: bool = Field(default=True, description="the head shares the target embedding's weights")
    head_bias: bool = Field(default=False, description="the head adds a number for each entry")
    scaled: bool = Field(default=True, description="embeddings are multiplied by sqrt(width)")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout while training")
    initial_std: float = Field(default=0.02, gt=0, description="deviation of the initial weights")

    @model_validator(mode="before")
    @classmethod
    def _follow(cls, numbers: Any) -> Any:
        if isinstance(numbers, dict):
            numbers = dict(with_hidden(numbers))
            for name in {"depth", "num_heads", "hidden"} & numbers.keys():
                numbers.setdefault(f"encoder_{name}", numbers[name])
        return numbers

    @model_validator(mode="after")
    def _divides(self) -> "TransformerConfig":
        multiple("width", self.width, "num_heads", self.num_heads)
        multiple("width", self.width, "encoder_num_heads", self.encoder_num_heads)
        multiple("width", self.width, "2 (sines and cosines)", 2)
        return self


def build(config: TransformerConfig) -> EncoderDecoder:
    """Compose a Transformer from its numbers."""
    c, norm, activation = config, layer_norm(config.norm_eps), ACTIVATIONS[config.activation]

    def block(heads: int, hidden: int, *, decodes: bool) -> Block:
        shared: dict[str, Any] = {"head_dim": c.width // heads, "bias": ALL_BIAS}
        shared["dropout"], mask = c.dropout, Causal() if decodes else Full()
        layers: dict[str, Any]
        layers = {"attention": Attention(c.width, heads, num_kv_heads=heads, mask=mask, **shared)}
        if decodes:
            layers["cross_attention"] = CrossAttention(c.width, heads, **shared)
        layers["mlp"] = MLP(c.width, hidden, activation=activation, bias=True, dropout=c.dropout)
        return Block(c.width, layers, norm=norm, residual=RESIDUALS[c.norms])

    def tower(depth: int, heads: int, hidden: int, *, decodes: bool) -> Tower:
        return Tower(
            c.width,
            [block(heads, hidden, decodes=decodes) for _ in range(depth)],
            norm=no_norm if c.norms == "post" else norm,
            embedding_norm=no_norm,
            position=Sinusoid(c.width, interleaved=c.interleaved),
            dropout=c.dropout,
        )

    return EncoderDecoder(
        c,
        tower(c.encoder_depth, c.encoder_num_heads, c.encoder_hidden, decodes=False),
        tower(c.depth, c.num_heads, c.hidden, decodes=True),
        head=Head(c.width, c.vocab_size, tied=c.tied, bias=c.head_bias),
        source_vocab_size=c.source_vocab_size,
        embedding_scale=c.width**0.5 if c.scaled else 1.0,
    )


PRESETS: dict[str, dict[str, Any]] = {
    "transformer-base": {"width": 512, "depth": 6, "num_heads": 8, "vocab_size": 37000},
    "transformer-big": {"width": 1024, "depth": 6, "num_heads": 16, "vocab_size": 37000},
}
