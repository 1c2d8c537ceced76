"""Switch Transformer (arXiv:2101.03961): T5 with experts, of which a token asks one.

New against T5: in every n-th block of both halves the MLP is a mixture of experts. The router's
probability multiplies the answer of the expert asked, so choosing is learned although a single
choice has no gradient. An expert has so many places for the tokens of a row; who finds none passes
by. Routers compute in single precision at least.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import nn

from stemma.core.config import StrictModel
from stemma.nn.dispatch import Share, Slots
from stemma.nn.encoder_decoder import EncoderDecoder, Tower, distance_tower
from stemma.nn.head import Head
from stemma.nn.mlp import ACTIVATIONS, MLP
from stemma.nn.moe import MoE, PlainExperts
from stemma.nn.norm import rms_norm
from stemma.nn.position import Buckets
from stemma.nn.router import SoftmaxTopK

Count = Annotated[int, Field(ge=1)]
Step = Annotated[int, Field(ge=0)]
Function = Literal["relu", "gelu", "gelu_tanh", "silu"]


class SwitchConfig(StrictModel):
    """The numbers of a Switch Transformer. Those of the encoder follow the decoder's.

    Without `expert_capacity` the `capacity_factor` is 1.25; with both null no token is dropped.
    """

    family: ClassVar[str] = "switch"
    family_version: ClassVar[int] = 1

    width: Count = Field(description="width of the stream")
    depth: Count = Field(description="number of the decoder's blocks")
    encoder_depth: Count = Field(description="number of the encoder's blocks; default depth")
    sparse_step: Step = Field(description="every n-th decoder block has experts; default 2, 0 none")
    encoder_sparse_step: Step = Field(description="the encoder's step; default sparse_step")
    num_experts: Count = Field(description="experts of a block that has any")
    expert_capacity: Count | None = Field(default=None, description="places of an expert in a row")
    capacity_factor: float | None = Field(gt=0, description="or a share of an even load, as 1.25")
    num_heads: Count = Field(description="attention heads")
    head_dim: Count = Field(default=64, description="width of one head")
    hidden: Count = Field(description="inner width of the MLP and of each expert")
    vocab_size: Count = Field(description="rows of the embedding")
    context: Count = Field(default=512, description="tokens that the model is trained to see")
    num_buckets: int = Field(default=32, ge=4, description="learned distances of two tokens")
    farthest: Count = Field(default=128, description="distance from which on all are one bucket")
    activation: Function = Field(default="relu", description="the function inside the MLP")
    norm_eps: float = Field(default=1e-6, gt=0, description="epsilon inside RMSNorm")
    shared: bool = Field(default=True, description="source and target share one embedding")
    tied: bool = Field(default=True, description="the head shares the embedding, scaled as T5's")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout while training")
    jitter: float = Field(default=0.01, ge=0, lt=1, description="noise of the router in training")
    balance_loss: float = Field(default=0.01, ge=0, description="weight of the balance loss")
    z_loss: float = Field(default=0.0, ge=0, description="weight of the router's z-loss")
    initial_std: float = Field(default=0.02, gt=0, description="deviation of the initial weights")

    @model_validator(mode="before")
    @classmethod
    def _follow(cls, numbers: Any) -> Any:
        if isinstance(numbers, dict):
            factor = None if numbers.get("expert_capacity") else 1.25
            numbers = {"sparse_step": 2, "capacity_factor": factor, **numbers}
            for name in {"depth", "sparse_step"} & numbers.keys():
                numbers.setdefault(f"encoder_{name}", numbers[name])
        return numbers

    @model_validator(mode="after")
    def _fits(self) -> "SwitchConfig":
        for both_directions in (True, False):
            Buckets(self.num_buckets, self.farthest, both_directions)
        if self.expert_capacity and self.capacity_factor:
            both = f"expert_capacity ({self.expert_capacity}), factor ({self.capacity_factor})"
            raise ValueError(f"only one may limit the experts: {both}")
        return self


def build(config: SwitchConfig) -> EncoderDecoder:
    """Compose a Switch Transformer from its numbers."""
    c, router = config, SoftmaxTopK(1)
    settings: Any = {"activation": ACTIVATIONS[c.activation], "dropout": c.dropout}
    losses: Any = {"balance_loss": c.balance_loss, "z_loss": c.z_loss, "dropout": c.dropout}

    def mixer(index: int, step: int) -> dict[str, nn.Module]:
        if not (step == 1 or (step > 0 and index % step == 1)):
            return {"mlp": MLP(c.width, c.hidden, bias=False, **settings)}
        experts = PlainExperts(c.num_experts, c.width, c.hidden, **settings)
        places = Slots(c.expert_capacity) if c.expert_capacity else None
        limit = Share(c.capacity_factor) if c.capacity_factor else places
        moe = MoE(c.width, experts, router=router, capacity=limit, jitter=c.jitter, **losses)
        return {"moe": moe}

    def tower(depth: int, step: int, *, both_directions: bool) -> Tower:
        mixers = [mixer(index, step) for index in range(depth)]
        distance = Buckets(c.num_buckets, c.farthest, both_directions)
        rest: Any = {"num_heads": c.num_heads, "head_dim": c.head_dim, "dropout": c.dropout}
        norm = rms_norm(c.norm_eps)
        return distance_tower(c.width, mixers, distance=distance, norm=norm, **rest)

    scale, source = c.width**-0.5 if c.tied else 1.0, None if c.shared else c.vocab_size
    return EncoderDecoder(
        c,
        tower(c.encoder_depth, c.encoder_sparse_step, both_directions=True),
        tower(c.depth, c.sparse_step, both_directions=False),
        head=Head(c.width, c.vocab_size, tied=c.tied, bias=False, scale=scale),
        source_vocab_size=source,
    )


# fmt: off
BASE = {"width": 768, "depth": 12, "num_heads": 12, "hidden": 3072, "vocab_size": 32128, "expert_capacity": 64}  # noqa: E501
PRESETS: dict[str, dict[str, Any]] = {
    f"switch-base-{number}": {**BASE, "num_experts": number} for number in (8, 16, 32, 64, 128)
}
# fmt: on
