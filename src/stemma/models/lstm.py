"""Recurrent language models of LSTM cells (arXiv:1409.2329).

New against the plain recurrent network: a carried tensor that gates write, erase and read, so that
gradients reach far back. Dropout falls between layers, never on what is carried (section 3.1). The
forget gate's bias begins at one, which the paper does not do (see `stemma.nn.cells.LSTM`).
"""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from stemma.core.config import StrictModel
from stemma.nn.cells import LSTM
from stemma.nn.norm import no_norm
from stemma.nn.recurrent import Recurrence
from stemma.nn.residual import Chain
from stemma.nn.stack import Block, LanguageModel

Count = Annotated[int, Field(ge=1)]


class LSTMConfig(StrictModel):
    """The numbers of a recurrent language model of LSTM cells."""

    family: ClassVar[str] = "lstm"
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


def build(config: LSTMConfig) -> LanguageModel:
    """Compose a recurrent language model from its numbers."""
    c = config

    def block() -> Block:
        layers = {"recurrence": Recurrence(c.width, c.width, LSTM(), dropout=c.dropout)}
        return Block(c.width, layers, norm=no_norm, residual=Chain())

    blocks = [block() for _ in range(c.depth)]
    return LanguageModel(c, blocks, norm=no_norm, tied=c.tied, dropout=c.dropout)


# Section 4.1 of the paper, on the Penn treebank; it draws from +-0.1, +-0.05 and +-0.04 evenly
# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "lstm-zaremba-small":  {"width": 200, "depth": 2, "vocab_size": 10000, "context": 20, "initial_std": 0.058},  # noqa: E501
    "lstm-zaremba-medium": {"width": 650, "depth": 2, "vocab_size": 10000, "context": 35, "dropout": 0.5, "initial_std": 0.029},  # noqa: E501
    "lstm-zaremba-large":  {"width": 1500, "depth": 2, "vocab_size": 10000, "context": 35, "dropout": 0.65, "initial_std": 0.023},  # noqa: E501
}
# fmt: on
