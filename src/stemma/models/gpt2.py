"""GPT-2 ("Language models are unsupervised multitask learners", 2019).

New against GPT-1: the norm stands before each sublayer instead of after it, one more norm stands
before the head, and the matrices that write to the stream start smaller with depth.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from stemma.core.config import StrictModel, multiple, with_hidden
from stemma.nn.attention import ALL_BIAS, Attention
from stemma.nn.embedding import LearnedPositions
from stemma.nn.mlp import ACTIVATIONS, MLP
from stemma.nn.norm import layer_norm
from stemma.nn.residual import PreNorm
from stemma.nn.stack import Block, LanguageModel

Count = Annotated[int, Field(ge=1)]


class GPT2Config(StrictModel):
    """The numbers of a GPT-2. `hidden` is four widths if not given."""

    family: ClassVar[str] = "gpt2"
    family_version: ClassVar[int] = 1

    width: Count = Field(description="width of the stream")
    depth: Count = Field(description="number of blocks")
    num_heads: Count = Field(description="attention heads; must divide width")
    hidden: Count = Field(description="inner width of the MLP; default 4 width")
    vocab_size: Count = Field(description="rows of the embedding")
    context: Count = Field(default=1024, description="rows of the learned position table")
    activation: Literal["relu", "gelu", "gelu_tanh", "silu"] = Field(
        default="gelu_tanh", description="the function inside the MLP"
    )
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
    def _divides(self) -> "GPT2Config":
        multiple("width", self.width, "num_heads", self.num_heads)
        return self

    @model_serializer(mode="wrap")
    def _dump(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # 0.1.0 had one function only: with it its models keep their fingerprints
        numbers: dict[str, Any] = dump(self)
        if self.activation == "gelu_tanh":
            numbers.pop("activation", None)
        return numbers


def build(config: GPT2Config) -> LanguageModel:
    """Compose a GPT-2 from its numbers."""
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
        mlp = MLP(
            c.width, c.hidden, activation=ACTIVATIONS[c.activation], bias=True, dropout=c.dropout
        )
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


PRESETS: dict[str, dict[str, Any]] = {
    "gpt2": {"width": 768, "depth": 12, "num_heads": 12, "vocab_size": 50257},
    "gpt2-medium": {"width": 1024, "depth": 24, "num_heads": 16, "vocab_size": 50257},
    "gpt2-large": {"width": 1280, "depth": 36, "num_heads": 20, "vocab_size": 50257},
    "gpt2-xl": {"width": 1600, "depth": 48, "num_heads": 25, "vocab_size": 50257},
}
