"""Sequence to sequence learning (arXiv:1409.3215): a translation through one state.

New against a recurrent language model: a second network reads the source first, and its last
states are where the language model of the target begins. Reading the source from its end brings
its first words close to the target's first words (section 3.3). With GRU cells it is the
encoder-decoder of arXiv:1406.1078 but for the summary, which there also enters at every step.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from stemma.core.config import StrictModel
from stemma.nn.cells import GRU, LSTM, Cell
from stemma.nn.encoder_decoder import Tower
from stemma.nn.head import Head
from stemma.nn.norm import no_norm
from stemma.nn.recurrent import Recurrence
from stemma.nn.residual import Chain
from stemma.nn.seq2seq import Seq2Seq, as_written, last_first
from stemma.nn.stack import Block

Count = Annotated[int, Field(ge=1)]
CELLS: dict[str, Cell] = {"lstm": LSTM(), "gru": GRU()}


class Seq2SeqConfig(StrictModel):
    """The numbers of a recurrent encoder-decoder; both halves have the same width and depth."""

    family: ClassVar[str] = "seq2seq"
    family_version: ClassVar[int] = 1

    width: Count = Field(description="width of the embeddings and of every layer's state")
    depth: Count = Field(description="recurrent layers of the encoder, and of the decoder")
    source_vocab_size: Count = Field(description="rows of the source's embedding")
    vocab_size: Count = Field(description="rows of the target's embedding")
    context: Count = Field(default=256, description="tokens of a source or a target at most")
    cell: Literal["lstm", "gru"] = Field(default="lstm", description="the recurrent cell")
    reverse_source: bool = Field(default=True, description="the source is read from its end")
    tied: bool = Field(default=False, description="the head shares the target embedding's weights")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout while training")
    initial_std: float = Field(
        default=0.2, gt=0, description="deviation of the initial embeddings and head"
    )


def build(config: Seq2SeqConfig) -> Seq2Seq:
    """Compose a recurrent encoder-decoder from its numbers."""
    c, cell = config, CELLS[config.cell]

    def block() -> Block:
        layers = {"recurrence": Recurrence(c.width, c.width, cell, dropout=c.dropout)}
        return Block(c.width, layers, norm=no_norm, residual=Chain())

    def tower() -> Tower:
        blocks = [block() for _ in range(c.depth)]
        return Tower(c.width, blocks, norm=no_norm, embedding_norm=no_norm, dropout=c.dropout)

    return Seq2Seq(
        c,
        tower(),
        tower(),
        cell=cell,
        order=last_first if c.reverse_source else as_written,
        head=Head(c.width, c.vocab_size, tied=c.tied, bias=True),
    )


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "seq2seq-sutskever": {"width": 1000, "depth": 4, "source_vocab_size": 160000, "vocab_size": 80000, "initial_std": 0.046},  # noqa: E501
}
# fmt: on
