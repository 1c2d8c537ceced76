"""Recurrent encoders and decoders: a source becomes a state, or a memory that is looked at.

`Seq2Seq` hands the encoder's last states to the decoder: all that a source says must fit into
them. `AlignedSeq2Seq` keeps an annotation of every source token instead. Both are called like the
Transformer's `EncoderDecoder`, so whatever decodes one decodes the others.

Axes: B batch, S source, T target, M memory tokens, C width, V vocabulary
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from stemma.nn.cache import Cache, TensorState
from stemma.nn.cells import Cell
from stemma.nn.context import Context
from stemma.nn.encoder_decoder import Tower
from stemma.nn.head import Head
from stemma.nn.residual import Losses
from stemma.nn.stack import new_cache, positions_of

Order = Callable[[Tensor], Tensor]


def as_written(source_BS: Tensor) -> Tensor:
    """The source from its first token to its last."""
    return source_BS


def last_first(source_BS: Tensor) -> Tensor:
    """The source from its last token to its first, arXiv:1409.3215, section 3.3."""
    return source_BS.flip(1)


class Seq2Seq(nn.Module):
    """One recurrent network reads, another of the same shape goes on from its last states.

    Sequence to sequence learning, arXiv:1409.3215, section 2. The memory that `encode` gives has
    one token for every tensor that a layer carries: (B, depth * carried, C), all of them real.
    """

    def __init__(
        self, config: Any, encoder: Tower, decoder: Tower, *, cell: Cell, order: Order, head: Head
    ) -> None:
        super().__init__()
        self.config, self.cell, self.order = config, cell, order
        self.source_embedding = nn.Embedding(config.source_vocab_size, config.width)
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.encoder, self.decoder, self.head = encoder, decoder, head

    def new_cache(self, capacity: int) -> Cache:
        """Empty states of the decoder; they do not grow, so any number of tokens fits."""
        return new_cache(self.decoder.blocks, capacity)

    def encode(self, source_BS: Tensor, context: Context | None = None) -> Context:
        """The same context with the last states of a source as its memory."""
        return self._encode(source_BS, context)

    def _encode(self, source_BS: Tensor, context: Context | None) -> Context:
        context, real_BS = context or Context(), None
        if context.memory_padding_BM is not None:
            real_BS = self.order(context.memory_padding_BM)
        caches = new_cache(self.encoder.blocks, source_BS.shape[1])
        own = Context(padding_BT=real_BS, caches=caches)
        x_BSC = self.source_embedding(self.order(source_BS))
        self.encoder(x_BSC, positions_of(source_BS, own), own)
        found: list[Any] = [
            states.get(name) for states in recurrent_states(caches) for name in self.cell.carried
        ]
        memory_BMC = torch.stack(found, 1)
        all_real = torch.ones(memory_BMC.shape[:2], dtype=torch.bool, device=memory_BMC.device)
        return replace(context, memory_BMC=memory_BMC, memory_padding_BM=all_real)

    def decode(self, target_BT: Tensor, context: Context) -> Tensor:
        """Scores (B, T, V) of the tokens after each of the target's, from a context with memory.

        Raises ValueError for a context without a memory.
        """
        return self.logits(self._decode(target_BT, context)[0])

    def hidden(
        self, source_BS: Tensor, target_BT: Tensor, context: Context | None = None
    ) -> tuple[Tensor, Losses]:
        """What leaves the decoder (B, T, C), and no auxiliary losses."""
        return self._decode(target_BT, self._encode(source_BS, context))

    def logits(self, x_BTC: Tensor) -> Tensor:
        """Scores of every vocabulary entry (B, T, V) from what leaves the decoder."""
        scores_BTV: Tensor = self.head(x_BTC, self.embedding.weight)
        return scores_BTV

    def forward(
        self, source_BS: Tensor, target_BT: Tensor, context: Context | None = None
    ) -> Tensor:
        return self.logits(self.hidden(source_BS, target_BT, context)[0])

    def _decode(self, target_BT: Tensor, context: Context) -> tuple[Tensor, Losses]:
        caches = context.caches or self.new_cache(target_BT.shape[1])
        self._begin(caches, context.memory_BMC)
        context = replace(context, caches=caches)
        x_BTC = self.embedding(target_BT)
        found: tuple[Tensor, Losses] = self.decoder(
            x_BTC, positions_of(target_BT, context), context
        )
        return found

    def _begin(self, caches: Cache, memory_BMC: Tensor | None) -> None:
        """Give the decoder's layers the memory's states, unless they have their own already."""
        states, names = recurrent_states(caches), self.cell.carried
        if states[0].get(names[0]) is not None:
            return
        if memory_BMC is None:
            raise ValueError("the decoder needs a memory: encode the source first")
        parts = iter(memory_BMC.unbind(1))
        for state in states:
            state.put(**{name: next(parts) for name in names})


def recurrent_states(caches: Cache) -> list[TensorState]:
    """The state of every layer's recurrence."""
    states: list[Any] = [layer["recurrence"] for layer in caches.layers]
    return states


class Maxout(nn.Module):
    """The larger of two linear maps, place by place, arXiv:1302.4389, section 3."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.pair = nn.Linear(inputs, 2 * width)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return torch.unflatten(self.pair(x_BTC), -1, (-1, 2)).amax(-1)


class AlignedSeq2Seq(nn.Module):
    """A decoder that looks at the source anew for every token, arXiv:1409.0473, section 3.

    The memory has the encoder's annotation of each source token, both directions side by side.
    The output is a function of the last token, the state after it and what was seen (equation 4;
    appendix A.2.2 writes the state before it), by a maxout layer.
    """

    def __init__(
        self, config: Any, encoder: Tower, decoder: Tower, *, readout: Maxout, head: Head
    ) -> None:
        super().__init__()
        self.config = config
        self.source_embedding = nn.Embedding(config.source_vocab_size, config.embedding_width)
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_width)
        self.encoder, self.decoder, self.readout, self.head = encoder, decoder, readout, head

    def new_cache(self, capacity: int) -> Cache:
        """Empty states of the decoder; it keeps the memory too, and any number of tokens fits."""
        return new_cache(self.decoder.blocks, capacity)

    def encode(self, source_BS: Tensor, context: Context | None = None) -> Context:
        """The same context with the annotations of a source (B, S, 2C) as its memory."""
        return self._encode(source_BS, context)

    def _encode(self, source_BS: Tensor, context: Context | None) -> Context:
        context = context or Context()
        own = Context(padding_BT=context.memory_padding_BM)
        x_BSC, _ = self.encoder(self.source_embedding(source_BS), positions_of(source_BS, own), own)
        return replace(context, memory_BMC=x_BSC)

    def decode(self, target_BT: Tensor, context: Context) -> Tensor:
        """Scores (B, T, V) of the tokens after each of the target's, from a context with memory.

        Raises ValueError for a context without a memory.
        """
        return self.logits(self._decode(target_BT, context)[0])

    def hidden(
        self, source_BS: Tensor, target_BT: Tensor, context: Context | None = None
    ) -> tuple[Tensor, Losses]:
        """What leaves the maxout layer (B, T, C), and no auxiliary losses."""
        return self._decode(target_BT, self._encode(source_BS, context))

    def logits(self, x_BTC: Tensor) -> Tensor:
        """Scores of every vocabulary entry (B, T, V) from what leaves the maxout layer."""
        scores_BTV: Tensor = self.head(x_BTC, self.embedding.weight)
        return scores_BTV

    def forward(
        self, source_BS: Tensor, target_BT: Tensor, context: Context | None = None
    ) -> Tensor:
        return self.logits(self.hidden(source_BS, target_BT, context)[0])

    def alignments(
        self, source_BS: Tensor, target_BT: Tensor, context: Context | None = None
    ) -> Tensor:
        """How much each target token's step looks at each source token, (B, T, S)."""
        context = self._encode(source_BS, context)
        own = replace(context, caches=None, real_BT=positions_of(target_BT, context) >= 0)
        recurrence: Any = self.decoder.blocks[0].recurrence
        weights_BTS: Tensor = recurrence.aligned(self.embedding(target_BT), own)[1]
        return weights_BTS

    def _decode(self, target_BT: Tensor, context: Context) -> tuple[Tensor, Losses]:
        y_BTC = self.embedding(target_BT)
        x_BTC, losses = self.decoder(y_BTC, positions_of(target_BT, context), context)
        return self.readout(torch.cat((x_BTC, y_BTC), dim=-1)), losses
