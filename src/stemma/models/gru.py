"""Recurrent language models of gated recurrent units (arXiv:1406.1078; compared in 1412.3555).

New against the LSTM: two gates instead of three and one carried tensor instead of two. The cell is
torch's, whose reset gate multiplies the finished product (`stemma.nn.cells.GRU`).
"""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from stemma.core.config import StrictModel
from stemma.nn.cells import GRU
from stemma.nn.norm import no_norm
from stemma.nn.recurrent import Recurrence
from stemma.nn.residual import Chain
from stemma.nn.stack import Block, LanguageModel

Count = Annotated[int, Field(ge=1)]


class GRUConfig(StrictModel):
    """The numbers of a recurrent language model of gated recurrent units."""

    family: ClassVar[str] = "gru"
    family_version: ClassVar[int] = 1

    width: Count = Field(description="width of the embedding and of every layer's state")
    depth: Count = Field(description="number of recurrent layers")
    vocab_size: Count = Field(description="rows of the embedding")
    context: Count = Field(default=256, description="tokens the model is trained to see at once")
    tied: bool = Field(default=False, description="the head shares the embedding's weights")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout while training")
    initial_std: float = Field(
        default=0.2, gt=0, description="deviation of the initial embedding and head"
    )


def build(config: GRUConfig) -> LanguageModel:
    """Compose a recurrent language model from its numbers."""
    c = config

    def block() -> Block:
        layers = {"recurrence": Recurrence(c.width, c.width, GRU(), dropout=c.dropout)}
        return Block(c.width, layers, norm=no_norm, residual=Chain())

    blocks = [block() for _ in range(c.depth)]
    return LanguageModel(c, blocks, norm=no_norm, tied=c.tied, dropout=c.dropout)


# Zaremba's sizes (arXiv:1409.2329, section 4.1) with this cell
PRESETS: dict[str, dict[str, Any]] = {
    "gru-small": {"width": 200, "depth": 2, "vocab_size": 10000},
    "gru-medium": {"width": 650, "depth": 2, "vocab_size": 10000, "dropout": 0.5},
}
