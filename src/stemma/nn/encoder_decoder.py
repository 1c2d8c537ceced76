"""Encoder and decoder, arXiv:1706.03762, figure 1: a source is read whole, a target token by token.

Axes: B batch, S source, T target, M memory (= S), C model width, V vocabulary
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from stemma.nn.attention import Attention, CrossAttention
from stemma.nn.cache import Cache
from stemma.nn.context import Context
from stemma.nn.embedding import LearnedPositions, Sinusoid
from stemma.nn.head import Head
from stemma.nn.mask import Causal, Full
from stemma.nn.norm import Norm, no_norm
from stemma.nn.position import Buckets
from stemma.nn.relative import RelativeBias
from stemma.nn.residual import Losses, PreNorm
from stemma.nn.stack import Block, new_cache, place, positions_of, prepare, run


class Tower(nn.Module):
    """Blocks with positions and norms of their own, run over vectors that are handed in.

    `relative` owns the learned biases that all its layers share. `output_dropout` drops what
    leaves the tower, after its final norm.
    """

    def __init__(
        self,
        width: int,
        blocks: list[Block],
        *,
        norm: Norm,
        embedding_norm: Norm,
        position: LearnedPositions | Sinusoid | None = None,
        relative: RelativeBias | None = None,
        dropout: float = 0.0,
        output_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.position, self.relative = position, relative
        self.embedding_norm = embedding_norm(width)
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm(width)
        self.dropout, self.output_dropout = nn.Dropout(dropout), nn.Dropout(output_dropout)

    def forward(
        self, x_BTC: Tensor, positions_BT: Tensor, context: Context
    ) -> tuple[Tensor, Losses]:
        x_BTC = place(x_BTC, self.position, positions_BT, context)
        x_BTC = self.dropout(self.embedding_norm(x_BTC))
        context = prepare(self.blocks, positions_BT, context, self.relative)
        residual: Any = self.blocks[0].residual
        stream, losses = run(self.blocks, residual.begin(x_BTC), context)
        return self.output_dropout(residual.finish(stream, self.norm)), losses


def distance_tower(
    width: int,
    mixers: Sequence[Mapping[str, nn.Module]],
    *,
    num_heads: int,
    head_dim: int,
    distance: Buckets,
    norm: Norm,
    dropout: float,
) -> Tower:
    """Half of a T5, arXiv:1910.10683, section 2.1: an encoder where distances go both ways.

    A decoder has cross attention too. `mixers` has what follows attention in every block, by name.
    No score is divided by the root of a head's width.
    """
    decodes = not distance.both_directions
    shared: dict[str, Any] = {"head_dim": head_dim, "dropout": dropout, "scale": 1.0}

    def readers() -> dict[str, nn.Module]:
        mask = Causal() if decodes else Full()
        attention = Attention(
            width, num_heads, num_kv_heads=num_heads, mask=mask, position=distance, **shared
        )
        if not decodes:
            return {"attention": attention}
        cross_attention = CrossAttention(width, num_heads, **shared)
        return {"attention": attention, "cross_attention": cross_attention}

    blocks = [
        Block(width, {**readers(), **mixer}, norm=norm, residual=PreNorm()) for mixer in mixers
    ]
    return Tower(
        width,
        blocks,
        norm=norm,
        embedding_norm=no_norm,
        relative=RelativeBias(distance, num_heads),
        dropout=dropout,
        output_dropout=dropout,
    )


class EncoderDecoder(nn.Module):
    """A network from a source to a target.

    `model(source_BS, target_BT)` gives the scores of the next target token at every place. To
    decode step by step: `context = replace(model.encode(source), caches=model.new_cache(n))`, then
    `model.decode(tokens, context)`. What is padding in the source is said by
    `Context.memory_padding_BM`, in the target by `padding_BT`. Source and target share one
    embedding, unless `source_vocab_size` gives the source its own. `embedding_scale` multiplies
    what was embedded. Raises ValueError for packed samples: a target would see all sources of its
    row.
    """

    def __init__(
        self,
        config: Any,
        encoder: Tower,
        decoder: Tower,
        *,
        head: Head,
        source_vocab_size: int | None = None,
        embedding_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.config, self.embedding_scale = config, embedding_scale
        self.source_embedding = (
            None if source_vocab_size is None else nn.Embedding(source_vocab_size, config.width)
        )
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.encoder, self.decoder, self.head = encoder, decoder, head

    def new_cache(self, capacity: int) -> Cache:
        """An empty cache for `capacity` target tokens a row; it keeps the memory's keys too."""
        return new_cache(self.decoder.blocks, capacity)

    def encode(self, source_BS: Tensor, context: Context | None = None) -> Context:
        """The same context with the memory of a source (B, S, C) in it."""
        return self._encode(source_BS, context or Context())[0]

    def decode(self, target_BT: Tensor, context: Context) -> Tensor:
        """Scores (B, T, V) of the tokens after each of the target's, from a context with memory."""
        return self.logits(self._decode(target_BT, context)[0])

    def hidden(
        self, source_BS: Tensor, target_BT: Tensor, context: Context | None = None
    ) -> tuple[Tensor, Losses]:
        """The decoder's stream after its final norm (B, T, C), and the losses of both sides."""
        context, losses = self._encode(source_BS, context or Context())
        x_BTC, more = self._decode(target_BT, context)
        named = {f"encoder.{name}": loss for name, loss in losses.items()}
        return x_BTC, named | {f"decoder.{name}": loss for name, loss in more.items()}

    def logits(self, x_BTC: Tensor) -> Tensor:
        """Scores of every vocabulary entry (B, T, V) from the stream after the final norm."""
        scores_BTV: Tensor = self.head(x_BTC, self.embedding.weight)
        return scores_BTV

    def forward(
        self, source_BS: Tensor, target_BT: Tensor, context: Context | None = None
    ) -> Tensor:
        return self.logits(self.hidden(source_BS, target_BT, context)[0])

    def _encode(self, source_BS: Tensor, context: Context) -> tuple[Context, Losses]:
        own = Context(padding_BT=context.memory_padding_BM)
        x_BSC = (self.source_embedding or self.embedding)(source_BS) * self.embedding_scale
        x_BSC, losses = self.encoder(x_BSC, positions_of(source_BS, own), own)
        return replace(context, memory_BMC=x_BSC), losses

    def _decode(self, target_BT: Tensor, context: Context) -> tuple[Tensor, Losses]:
        if context.document_ids_BT is not None:
            raise ValueError("packed samples need a source each: one row has one source here")
        x_BTC = self.embedding(target_BT) * self.embedding_scale
        found: tuple[Tensor, Losses]
        found = self.decoder(x_BTC, positions_of(target_BT, context), context)
        return found
