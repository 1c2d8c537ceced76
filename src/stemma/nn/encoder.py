"""A bidirectional encoder with heads: BERT, arXiv:1810.04805, section 3.

A token is embedded with its place and with the sentence of the pair that it is of. What leaves the
blocks is read by heads, of which a network has those that it was given: one that fills masked
tokens, a pooler of the first token, and two readers of what was pooled.

Axes: B batch, T time, C model width, V vocabulary, L labels
"""

from typing import Any

import torch
from torch import Tensor, nn

from stemma.nn.context import Context
from stemma.nn.embedding import LearnedPositions
from stemma.nn.norm import Norm
from stemma.nn.residual import Losses
from stemma.nn.stack import Block, place, positions_of, prepare, run


class Pooler(nn.Module):
    """The first real token of every row through one layer and tanh: a vector for the whole row."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, x_BTC: Tensor, real_BT: Tensor | None) -> Tensor:
        first_BC = x_BTC[:, 0]
        if real_BT is not None:
            rows_B = torch.arange(len(x_BTC), device=x_BTC.device)
            first_BC = x_BTC[rows_B, real_BT.int().argmax(1)]
        pooled_BC: Tensor = self.dense(first_BC).tanh()
        return pooled_BC


class Encoder(nn.Module):
    """Blocks that see the whole text, between an embedding and the heads that a network has.

    `model(tokens_BT, context)` gives the scores of the masked head (B, T, V). Which sentence a
    token is of is said by `Context.segments_BT`, all zeros if not given. A head that is None is
    not there: asking it raises ValueError.
    """

    def __init__(
        self,
        config: Any,
        blocks: list[Block],
        *,
        embedding_norm: Norm,
        head: nn.Module | None,
        pooler: Pooler | None,
        pair_head: nn.Linear | None,
        classifier: nn.Linear | None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.position = LearnedPositions(config.context, config.width)
        self.segment = nn.Embedding(config.num_segments, config.width)
        self.embedding_norm = embedding_norm(config.width)
        self.blocks = nn.ModuleList(blocks)
        self.head, self.pooler = head, pooler
        self.pair_head, self.classifier = pair_head, classifier
        self.dropout = nn.Dropout(dropout)

    def hidden(self, tokens_BT: Tensor, context: Context | None = None) -> tuple[Tensor, Losses]:
        """What leaves the last block (B, T, C), and the auxiliary losses by layer and name.

        Raises ValueError where the table of positions is too short for the tokens.
        """
        context = context or Context()
        positions_BT, segments_BT = positions_of(tokens_BT, context), context.segments_BT
        if segments_BT is None:
            segments_BT = torch.zeros_like(tokens_BT)
        x_BTC = self.embedding(tokens_BT) + self.segment(segments_BT)
        x_BTC = place(x_BTC, self.position, positions_BT, context)
        x_BTC = self.dropout(self.embedding_norm(x_BTC))
        context = prepare(self.blocks, positions_BT, context)
        residual: Any = self.blocks[0].residual
        stream, losses = run(self.blocks, residual.begin(x_BTC), context)
        return residual.finish(stream, nn.Identity()), losses

    def logits(self, x_BTC: Tensor) -> Tensor:
        """Scores of every vocabulary entry (B, T, V): which token a mask stands for."""
        found: Tensor = self._head("head", "masked tokens")(x_BTC, self.embedding.weight)
        return found

    def pooled(self, x_BTC: Tensor, padding_BT: Tensor | None = None) -> Tensor:
        """One vector a row (B, C), from its first real token."""
        found: Tensor = self._head("pooler", "whole texts")(x_BTC, padding_BT)
        return found

    def next_sentence(self, x_BTC: Tensor, padding_BT: Tensor | None = None) -> Tensor:
        """Scores (B, 2): 0 where the second sentence follows the first, 1 where it is another."""
        pooled_BC = self.pooled(x_BTC, padding_BT)
        found: Tensor = self._head("pair_head", "pairs of sentences")(pooled_BC)
        return found

    def classify(self, x_BTC: Tensor, padding_BT: Tensor | None = None) -> Tensor:
        """Scores of every label (B, L)."""
        pooled_BC = self.dropout(self.pooled(x_BTC, padding_BT))
        found: Tensor = self._head("classifier", "labels")(pooled_BC)
        return found

    def forward(self, tokens_BT: Tensor, context: Context | None = None) -> Tensor:
        return self.logits(self.hidden(tokens_BT, context)[0])

    def _head(self, name: str, purpose: str) -> Any:
        head = getattr(self, name)
        if head is None:
            raise ValueError(f"this network has no head for {purpose}")
        return head
