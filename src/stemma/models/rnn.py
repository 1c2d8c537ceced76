"""Recurrent language models of plain tanh cells (Mikolov et al., "Recurrent neural network based
language model", 2010).

New against a table of n-grams: words are vectors, and the past is a state that has no fixed
length. Layers are stacked without a residual path, and dropout falls between them, never on what
is carried from step to step (arXiv:1409.2329, section 3.1).
"""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from stemma.core.config import StrictModel
from stemma.nn.cells import RNN
from stemma.nn.norm import no_norm
from stemma.nn.recurrent import Recurrence
from stemma.nn.residual import Chain
from stemma.nn.stack import Block, LanguageModel

Count = Annotated[int, Field(ge=1)]


class RNNConfig(StrictModel):
    """The numbers of a recurrent language model of tanh cells."""

    family: ClassVar[str] = "rnn"
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


def build(config: RNNConfig) -> LanguageModel:
    """Compose a recurrent language model from its numbers."""
    c = config

    def block() -> Block:
        layers = {"recurrence": Recurrence(c.width, c.width, RNN(), dropout=c.dropout)}
        return Block(c.width, layers, norm=no_norm, residual=Chain())

    blocks = [block() for _ in range(c.depth)]
    return LanguageModel(c, blocks, norm=no_norm, tied=c.tied, dropout=c.dropout)


# Zaremba's sizes (arXiv:1409.2329, section 4.1) with this cell
PRESETS: dict[str, dict[str, Any]] = {
    "rnn-small": {"width": 200, "depth": 2, "vocab_size": 10000},
    "rnn-medium": {"width": 650, "depth": 2, "vocab_size": 10000, "dropout": 0.5},
}
