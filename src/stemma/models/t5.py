"""T5 (arXiv:1910.10683): every task is a text to read and a text to write.

New against the Transformer: learned numbers for the distance of two tokens on the scores of
attention instead of sines on the embedding, one table for each half; RMSNorm before every sublayer
and no bias anywhere; scores are not divided by the root of a head's width, which is a number of its
own. T5 1.1 has a gated MLP, and a head that neither shares the embedding's weights nor scales.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from stemma.core.config import StrictModel
from stemma.nn.encoder_decoder import EncoderDecoder, Tower, distance_tower
from stemma.nn.head import Head
from stemma.nn.mlp import ACTIVATIONS, GLU, MLP
from stemma.nn.norm import rms_norm
from stemma.nn.position import Buckets

Count = Annotated[int, Field(ge=1)]
Function = Literal["relu", "gelu", "gelu_tanh", "silu"]


class T5Config(StrictModel):
    """The numbers of a T5. The encoder is as deep as the decoder if not given."""

    family: ClassVar[str] = "t5"
    family_version: ClassVar[int] = 1

    width: Count = Field(description="width of the stream")
    depth: Count = Field(description="number of the decoder's blocks")
    encoder_depth: Count = Field(description="number of the encoder's blocks; default depth")
    num_heads: Count = Field(description="attention heads")
    head_dim: Count = Field(default=64, description="width of one head")
    hidden: Count = Field(description="inner width of the MLP")
    vocab_size: Count = Field(description="rows of the embedding that source and target share")
    context: Count = Field(default=512, description="tokens that the model is trained to see")
    num_buckets: int = Field(default=32, ge=4, description="learned distances of two tokens")
    farthest: Count = Field(default=128, description="distance from which on all are one bucket")
    activation: Function = Field(default="relu", description="the function inside the MLP")
    gated: bool = Field(default=False, description="the MLP has a third matrix, its gate")
    norm_eps: float = Field(default=1e-6, gt=0, description="epsilon inside RMSNorm")
    tied: bool = Field(default=True, description="the head shares the embedding's weights")
    scaled_head: bool = Field(default=True, description="the head divides by the root of width")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout while training")
    initial_std: float = Field(default=0.02, gt=0, description="deviation of the initial weights")

    @model_validator(mode="before")
    @classmethod
    def _follow(cls, numbers: Any) -> Any:
        if isinstance(numbers, dict) and "depth" in numbers:
            numbers = {"encoder_depth": numbers["depth"], **numbers}
        return numbers

    @model_validator(mode="after")
    def _tells_distances(self) -> "T5Config":
        for both_directions in (True, False):
            Buckets(self.num_buckets, self.farthest, both_directions)
        return self


def build(config: T5Config) -> EncoderDecoder:
    """Compose a T5 from its numbers."""
    c, activation = config, ACTIVATIONS[config.activation]
    kind: Any = GLU if c.gated else MLP

    def tower(depth: int, *, both_directions: bool) -> Tower:
        settings = {"activation": activation, "bias": False, "dropout": c.dropout}
        return distance_tower(
            c.width,
            [{"mlp": kind(c.width, c.hidden, **settings)} for _ in range(depth)],
            num_heads=c.num_heads,
            head_dim=c.head_dim,
            distance=Buckets(c.num_buckets, c.farthest, both_directions),
            norm=rms_norm(c.norm_eps),
            dropout=c.dropout,
        )

    return EncoderDecoder(
        c,
        tower(c.encoder_depth, both_directions=True),
        tower(c.depth, both_directions=False),
        head=Head(
            c.width,
            c.vocab_size,
            tied=c.tied,
            bias=False,
            scale=c.width**-0.5 if c.scaled_head else 1.0,
        ),
    )


# fmt: off
ELEVEN = {"gated": True, "activation": "gelu_tanh", "tied": False, "scaled_head": False, "vocab_size": 32128}  # noqa: E501
PRESETS: dict[str, dict[str, Any]] = {
    "t5-small":      {"width": 512, "depth": 6, "num_heads": 8, "hidden": 2048, "vocab_size": 32128},  # noqa: E501
    "t5-base":       {"width": 768, "depth": 12, "num_heads": 12, "hidden": 3072, "vocab_size": 32128},  # noqa: E501
    "t5-large":      {"width": 1024, "depth": 24, "num_heads": 16, "hidden": 4096, "vocab_size": 32128},  # noqa: E501
    "t5-3b":         {"width": 1024, "depth": 24, "num_heads": 32, "head_dim": 128, "hidden": 16384, "vocab_size": 32128},  # noqa: E501
    "t5-11b":        {"width": 1024, "depth": 24, "num_heads": 128, "head_dim": 128, "hidden": 65536, "vocab_size": 32128},  # noqa: E501
    "t5-v1.1-small": {"width": 512, "depth": 8, "num_heads": 6, "hidden": 1024, **ELEVEN},
    "t5-v1.1-base":  {"width": 768, "depth": 12, "num_heads": 12, "hidden": 2048, **ELEVEN},
    "t5-v1.1-large": {"width": 1024, "depth": 24, "num_heads": 16, "hidden": 2816, **ELEVEN},
    "t5-v1.1-xl":    {"width": 2048, "depth": 24, "num_heads": 32, "hidden": 5120, **ELEVEN},
    "t5-v1.1-xxl":   {"width": 4096, "depth": 24, "num_heads": 64, "hidden": 10240, **ELEVEN},
}
# fmt: on
