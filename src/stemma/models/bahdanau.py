"""Translation by jointly learning to align and translate (arXiv:1409.0473).

New against sequence to sequence learning: the source is read in both directions, and every one of
its tokens keeps an annotation. Before each target token the decoder scores all annotations against
its state, and their weighted sum goes into the cell and into the output. So no sentence has to fit
into one vector, and the weights show which source words a target word comes from.
"""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from stemma.core.config import StrictModel
from stemma.nn.alignment import Additive, AlignedRecurrence
from stemma.nn.cells import ChoGRU
from stemma.nn.encoder_decoder import Tower
from stemma.nn.head import Head
from stemma.nn.norm import no_norm
from stemma.nn.recurrent import Bidirectional
from stemma.nn.residual import Chain
from stemma.nn.seq2seq import AlignedSeq2Seq, Maxout
from stemma.nn.stack import Block

Count = Annotated[int, Field(ge=1)]


class BahdanauConfig(StrictModel):
    """The numbers of a recurrent encoder-decoder with additive attention."""

    family: ClassVar[str] = "bahdanau"
    family_version: ClassVar[int] = 1

    width: Count = Field(description="width of the states: of each direction, and of the decoder")
    depth: Count = Field(default=1, description="bidirectional layers of the encoder")
    embedding_width: Count = Field(description="width of the embeddings")
    hidden: Count = Field(description="units that compare a state with an annotation")
    maxout: Count = Field(description="width of the maxout layer before the head")
    source_vocab_size: Count = Field(description="rows of the source's embedding")
    vocab_size: Count = Field(description="rows of the target's embedding")
    context: Count = Field(default=256, description="tokens of a source or a target at most")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout while training")
    initial_std: float = Field(
        default=0.2, gt=0, description="deviation of the initial weights outside of the cells"
    )


def build(config: BahdanauConfig) -> AlignedSeq2Seq:
    """Compose an encoder-decoder with additive attention from its numbers."""
    c, memory_width = config, 2 * config.width

    def encoder_block(index: int) -> Block:
        inputs = memory_width if index else c.embedding_width
        layers = {"recurrence": Bidirectional(inputs, c.width, ChoGRU(), dropout=c.dropout)}
        return Block(c.width, layers, norm=no_norm, residual=Chain())

    def tower(blocks: list[Block]) -> Tower:
        return Tower(c.width, blocks, norm=no_norm, embedding_norm=no_norm, dropout=c.dropout)

    alignment = Additive(c.width, memory_width, c.hidden)
    decoder = AlignedRecurrence(
        c.embedding_width, c.width, memory_width, ChoGRU(), alignment, dropout=c.dropout
    )
    return AlignedSeq2Seq(
        c,
        tower([encoder_block(index) for index in range(c.depth)]),
        tower([Block(c.width, {"recurrence": decoder}, norm=no_norm, residual=Chain())]),
        readout=Maxout(c.width + memory_width + c.embedding_width, c.maxout),
        head=Head(c.maxout, c.vocab_size, tied=False, bias=True),
    )


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "rnnsearch": {"width": 1000, "embedding_width": 620, "hidden": 1000, "maxout": 500, "source_vocab_size": 30000, "vocab_size": 30000, "context": 50, "initial_std": 0.01},  # noqa: E501
}
# fmt: on
