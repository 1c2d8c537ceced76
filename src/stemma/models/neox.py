"""GPT-NeoX (arXiv:2204.06745) and Pythia (arXiv:2304.01373).

New against GPT-2: rotary positions on the first features of every head instead of a learned table,
attention and MLP side by side on one stream, and a head of its own.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from stemma.core.config import StrictModel, multiple, with_hidden
from stemma.nn.attention import ALL_BIAS, NO_BIAS, Attention
from stemma.nn.mlp import ACTIVATIONS, MLP
from stemma.nn.norm import layer_norm
from stemma.nn.position import Rope
from stemma.nn.residual import Parallel, PreNorm
from stemma.nn.rope_scaling import RopeScaling, Unscaled
from stemma.nn.stack import Block, LanguageModel

Count = Annotated[int, Field(ge=1)]


class NeoXConfig(StrictModel):
    """The numbers of a GPT-NeoX. `hidden` is four widths if not given."""

    family: ClassVar[str] = "neox"
    family_version: ClassVar[int] = 1

    width: Count = Field(description="width of the stream")
    depth: Count = Field(description="number of blocks")
    num_heads: Count = Field(description="attention heads; must divide width")
    hidden: Count = Field(description="inner width of the MLP; default 4 width")
    vocab_size: Count = Field(description="rows of the embedding")
    context: Count = Field(default=2048, description="tokens the model is trained to see at once")
    parallel: bool = Field(default=True, description="attention and MLP read the same stream")
    attention_bias: bool = Field(default=True, description="attention's projections have biases")
    activation: Literal["gelu", "gelu_tanh", "relu", "silu"] = Field(
        default="gelu", description="what stands between the MLP's two layers"
    )
    rotary_fraction: float = Field(default=0.25, gt=0, le=1, description="share that rotates")
    rope_base: float = Field(default=10_000.0, gt=0, description="base of the rotary frequencies")
    rope_scaling: RopeScaling = Field(default=Unscaled(), description="angles for longer texts")
    norm_eps: float = Field(default=1e-5, gt=0, description="epsilon inside LayerNorm")
    tied: bool = Field(default=False, description="the head shares the embedding's weights")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout while training")
    initial_std: float = Field(default=0.02, gt=0, description="deviation of the initial weights")

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.width // self.num_heads

    @property
    def rotary_dim(self) -> int:
        """Features of a head that rotate; a fraction is cut off, as the published models do."""
        return int(self.head_dim * self.rotary_fraction)

    _follow = model_validator(mode="before")(with_hidden)

    @model_validator(mode="after")
    def _divides(self) -> "NeoXConfig":
        multiple("width", self.width, "num_heads", self.num_heads)
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            what = f"rotary_fraction ({self.rotary_fraction}) of a head's {self.head_dim} features"
            raise ValueError(f"{what} is {self.rotary_dim}; wanted an even number, at least 2")
        return self


def build(config: NeoXConfig) -> LanguageModel:
    """Compose a GPT-NeoX from its numbers."""
    c, rope = config, Rope(config.rotary_dim, config.rope_base, scaling=config.rope_scaling)

    def block() -> Block:
        attention = Attention(
            c.width,
            c.num_heads,
            num_kv_heads=c.num_heads,
            head_dim=c.head_dim,
            position=rope,
            bias=ALL_BIAS if c.attention_bias else NO_BIAS,
            dropout=c.dropout,
        )
        activation = ACTIVATIONS[c.activation]
        mlp = MLP(c.width, c.hidden, activation=activation, bias=True, dropout=c.dropout)
        layers = {"attention": attention, "mlp": mlp}
        residual = Parallel() if c.parallel else PreNorm()
        return Block(c.width, layers, norm=layer_norm(c.norm_eps), residual=residual)

    blocks = [block() for _ in range(c.depth)]
    return LanguageModel(c, blocks, norm=layer_norm(c.norm_eps), tied=c.tied, dropout=c.dropout)


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "pythia-14m":   {"width": 128, "depth": 6, "num_heads": 4, "vocab_size": 50304},
    "pythia-31m":   {"width": 256, "depth": 6, "num_heads": 8, "vocab_size": 50304},
    "pythia-70m":   {"width": 512, "depth": 6, "num_heads": 8, "vocab_size": 50304},
    "pythia-160m":  {"width": 768, "depth": 12, "num_heads": 12, "vocab_size": 50304},
    "pythia-410m":  {"width": 1024, "depth": 24, "num_heads": 16, "vocab_size": 50304},
    "pythia-1b":    {"width": 2048, "depth": 16, "num_heads": 8, "vocab_size": 50304},
    "pythia-1.4b":  {"width": 2048, "depth": 24, "num_heads": 16, "vocab_size": 50304},
    "pythia-2.8b":  {"width": 2560, "depth": 32, "num_heads": 32, "vocab_size": 50304},
    "pythia-6.9b":  {"width": 4096, "depth": 32, "num_heads": 32, "vocab_size": 50432},
    "pythia-12b":   {"width": 5120, "depth": 36, "num_heads": 40, "vocab_size": 50688},
    "gpt-neox-20b": {"width": 6144, "depth": 44, "num_heads": 64, "vocab_size": 50432, "activation": "gelu_tanh"},  # noqa: E501
}
# fmt: on
