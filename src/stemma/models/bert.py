"""BERT (arXiv:1810.04805): a text is seen whole, from both sides, and masked tokens are filled in.

New against the Transformer's encoder: learned positions, a vector for the sentence of a pair that
a token is of, a norm after the embedding, GELU, and heads for the two tasks of pretraining. The
heads are parts that may be missing: sentence encoders keep the pooler alone, classifiers add one
of their own.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import nn

from stemma.core.config import StrictModel, multiple, with_hidden
from stemma.nn.attention import ALL_BIAS, Attention
from stemma.nn.encoder import Encoder, Pooler
from stemma.nn.head import MaskedHead
from stemma.nn.mask import Full
from stemma.nn.mlp import ACTIVATIONS, MLP
from stemma.nn.norm import layer_norm
from stemma.nn.residual import PostNorm
from stemma.nn.stack import Block

Count = Annotated[int, Field(ge=1)]


class BertConfig(StrictModel):
    """The numbers of a BERT. `hidden` is four widths if not given."""

    family: ClassVar[str] = "bert"
    family_version: ClassVar[int] = 1

    width: Count = Field(description="width of the stream")
    depth: Count = Field(description="number of blocks")
    num_heads: Count = Field(description="attention heads; must divide width")
    hidden: Count = Field(description="inner width of the MLP; default 4 width")
    vocab_size: Count = Field(description="rows of the embedding")
    context: Count = Field(default=512, description="rows of the learned position table")
    num_segments: Count = Field(default=2, description="sentences that a text may consist of")
    activation: Literal["relu", "gelu", "gelu_tanh", "silu"] = Field(
        default="gelu", description="the function inside the MLP and the masked head"
    )
    norm_eps: float = Field(default=1e-12, gt=0, description="epsilon inside LayerNorm")
    masked_head: bool = Field(default=True, description="a head that fills in masked tokens")
    tied: bool = Field(default=True, description="that head shares the embedding's weights")
    pooler: bool = Field(default=True, description="a layer over the first token, for whole texts")
    pair_head: bool = Field(default=True, description="a head for whether sentences follow")
    num_labels: int = Field(default=0, ge=0, description="labels of a classifier; 0 is none")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout while training")
    initial_std: float = Field(default=0.02, gt=0, description="deviation of the initial weights")

    _follow = model_validator(mode="before")(with_hidden)

    @model_validator(mode="after")
    def _fits(self) -> "BertConfig":
        multiple("width", self.width, "num_heads", self.num_heads)
        for name, number in (("pair_head", self.pair_head), ("num_labels", self.num_labels)):
            if number and not self.pooler:
                raise ValueError(f"{name} ({number}) reads what is pooled, but pooler is False")
        return self


def build(config: BertConfig) -> Encoder:
    """Compose a BERT from its numbers."""
    c, norm, activation = config, layer_norm(config.norm_eps), ACTIVATIONS[config.activation]

    def block() -> Block:
        attention = Attention(
            c.width,
            c.num_heads,
            num_kv_heads=c.num_heads,
            head_dim=c.width // c.num_heads,
            mask=Full(),
            bias=ALL_BIAS,
            dropout=c.dropout,
        )
        mlp = MLP(c.width, c.hidden, activation=activation, bias=True, dropout=c.dropout)
        layers = {"attention": attention, "mlp": mlp}
        return Block(c.width, layers, norm=norm, residual=PostNorm())

    head = MaskedHead(c.width, c.vocab_size, activation=activation, norm=norm, tied=c.tied)
    return Encoder(
        c,
        [block() for _ in range(c.depth)],
        embedding_norm=norm,
        head=head if c.masked_head else None,
        pooler=Pooler(c.width) if c.pooler else None,
        pair_head=nn.Linear(c.width, 2) if c.pair_head else None,
        classifier=nn.Linear(c.width, c.num_labels) if c.num_labels else None,
        dropout=c.dropout,
    )


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "bert-base":     {"width": 768, "depth": 12, "num_heads": 12, "vocab_size": 30522},
    "bert-large":    {"width": 1024, "depth": 24, "num_heads": 16, "vocab_size": 30522},
    "all-minilm-l6": {"width": 384, "depth": 6, "num_heads": 12, "vocab_size": 30522, "masked_head": False, "pair_head": False},  # noqa: E501
}
# fmt: on
