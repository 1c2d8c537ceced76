"""Blocks and what surrounds them: embedding, final norm, head.

The stack makes what all layers share (rotary tables, visibility, biases) once per forward pass, and
gives each layer its own state. Parallelism, precision, compilation and activation checkpointing are
applied from outside: nothing here mentions them.

Axes: B batch, T time, S keys, C model width, V vocabulary
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from stemma.nn.cache import Cache, Slots
from stemma.nn.context import Context
from stemma.nn.embedding import LearnedPositions, Sinusoid
from stemma.nn.norm import Norm, no_norm
from stemma.nn.relative import RelativeBias
from stemma.nn.residual import Losses, Residual, Stream, Sublayer
from stemma.nn.sight import sights


class Block(nn.Module):
    """Sublayers by name, each with its own norm `NAME_norm`, joined by a residual scheme.

    Schemes with a second norm get it as `NAME_post_norm`.
    """

    def __init__(
        self, width: int, sublayers: Mapping[str, nn.Module], *, norm: Norm, residual: Residual
    ) -> None:
        super().__init__()
        self.residual, self.names = residual, tuple(sublayers)
        for name, layer in sublayers.items():
            self.add_module(f"{name}_norm", norm(width))
            self.add_module(name, layer)
            if residual.post_norms:
                self.add_module(f"{name}_post_norm", norm(width))

    def forward(self, stream: Stream, context: Context) -> tuple[Stream, Losses]:
        states = context.states or {}
        sublayers = [
            Sublayer(
                norm=getattr(self, f"{name}_norm"),
                layer=getattr(self, name),
                context=replace(context, cache=states[name]) if name in states else context,
                post_norm=getattr(self, f"{name}_post_norm", None),
            )
            for name in self.names
        ]
        return self.residual(stream, sublayers)


def run(blocks: Iterable[nn.Module], stream: Stream, context: Context) -> tuple[Stream, Losses]:
    """Send the stream through the blocks; losses come back as `LAYER.NAME`."""
    losses: Losses = {}
    for index, block in enumerate(blocks):
        if context.caches is not None:
            context = replace(context, states=context.caches.layers[index])
        stream, new_losses = block(stream, context)
        losses |= {f"{index}.{name}": loss for name, loss in new_losses.items()}
    return stream, losses


def sublayers_of(blocks: Iterable[Any]) -> list[dict[str, Any]]:
    """The sublayers of each block by name."""
    return [{name: getattr(block, name) for name in block.names} for block in blocks]


def new_cache(blocks: Iterable[nn.Module], capacity: int) -> Cache:
    """Empty states for every layer that keeps any, for `capacity` tokens a row."""
    layers = sublayers_of(blocks)
    masks = [layer.mask for each in layers for layer in each.values() if hasattr(layer, "mask")]
    slots = {window: Slots(capacity, window) for window in {mask.window for mask in masks}}
    states = [
        {
            name: layer.new_state(slots)
            for name, layer in each.items()
            if hasattr(layer, "new_state")
        }
        for each in layers
    ]
    return Cache(states, slots, capacity)


def positions_of(tokens_BT: Tensor, context: Context) -> Tensor:
    """Absolute positions (B or 1, T): given, counted over real tokens, or counted from the cache.

    With padding, a row's first real token has position 0 wherever it stands; padding has -1.
    """
    if context.positions_BT is not None:
        return context.positions_BT
    start = context.caches.length if context.caches is not None else 0
    if context.padding_BT is not None:
        if start:
            raise ValueError("padding after cached tokens needs explicit positions")
        return (context.padding_BT.long().cumsum(1) - 1).masked_fill(~context.padding_BT, -1)
    if context.caches is not None and context.caches.ragged:
        raise ValueError("a ragged cache needs explicit positions for its new tokens")
    return torch.arange(start, start + tokens_BT.shape[1], device=tokens_BT.device)[None]


def prepare(
    blocks: Iterable[nn.Module],
    positions_BT: Tensor,
    context: Context,
    relative: RelativeBias | None = None,
) -> Context:
    """Build each distinct table and each distinct visibility once for the whole stack."""
    layers = [layer for each in sublayers_of(blocks) for layer in each.values()]
    seeing = [layer for layer in layers if hasattr(layer, "mask")]
    uneven = context.positions_BT is not None or context.padding_BT is not None
    keys = {}
    if context.caches is not None:
        keys = context.caches.extend(positions_BT, ragged=uneven)
    tables, visible = sights(seeing, positions_BT, keys, context, relative)
    return replace(
        context,
        tables=tables,
        visible=visible,
        real_BT=positions_BT >= 0 if uneven else None,
    )


def place(
    x_BTC: Tensor,
    position: LearnedPositions | Sinusoid | None,
    positions_BT: Tensor,
    context: Context,
) -> Tensor:
    """Add to the embedding what tells its places apart, if anything does.

    Raises ValueError where a learned table is too short for the tokens.
    """
    if position is None:
        return x_BTC
    if position.limit is not None:
        last = x_BTC.shape[1] + (context.caches.length if context.caches else 0)
        uneven = context.positions_BT is not None or context.padding_BT is not None
        if uneven and positions_BT.numel():
            last = int(positions_BT.max()) + 1  # only where it may differ: a GPU waits for it
        if last > position.limit:
            raise ValueError(f"{last} tokens do not fit the model's {position.limit} positions")
    placed: Tensor = position(positions_BT)
    return x_BTC + placed.to(x_BTC.dtype)


class LanguageModel(nn.Module):
    """A decoder-only language model: embedding, blocks, final norm, head.

    `config` carries the family's name and version; together they are the model's whole identity.
    A tied head has no parameter of its own. `head` replaces the plain linear head. The embedding
    is multiplied by `embedding_scale` and normalised by `embedding_norm` where a family does so.
    """

    def __init__(
        self,
        config: Any,
        blocks: list[Block],
        *,
        norm: Norm,
        tied: bool,
        position: LearnedPositions | Sinusoid | None = None,
        head: nn.Module | None = None,
        embedding_norm: Norm = no_norm,
        embedding_scale: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.config, width, vocab_size = config, config.width, config.vocab_size
        self.embedding = nn.Embedding(vocab_size, width)
        self.position, self.embedding_scale = position, embedding_scale
        self.embedding_norm = embedding_norm(width)
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm(width)
        self.head = None if tied else head or nn.Linear(width, vocab_size, bias=False)
        self.dropout = nn.Dropout(dropout)

    def new_cache(self, capacity: int) -> Cache:
        """An empty cache for `capacity` tokens a row."""
        return new_cache(self.blocks, capacity)

    def hidden(self, tokens_BT: Tensor, context: Context | None = None) -> tuple[Tensor, Losses]:
        """The stream after the final norm (B, T, C), and the auxiliary losses by layer and name.

        Raises ValueError where a learned position table is too short for the tokens.
        """
        context = context or Context()
        positions_BT = positions_of(tokens_BT, context)
        x_BTC = self.embedding(tokens_BT)
        if self.embedding_scale != 1.0:
            x_BTC = x_BTC * self.embedding_scale
        x_BTC = place(x_BTC, self.position, positions_BT, context)
        x_BTC = self.dropout(self.embedding_norm(x_BTC))
        context = prepare(self.blocks, positions_BT, context)
        residual: Any = self.blocks[0].residual
        stream, losses = run(self.blocks, residual.begin(x_BTC), context)
        x_BTC = residual.finish(stream, self.norm)
        return x_BTC, losses

    def logits(self, x_BTC: Tensor) -> Tensor:
        """Scores of every vocabulary entry (B, T, V) from the stream after the final norm."""
        if self.head is None:
            return nn.functional.linear(x_BTC, self.embedding.weight)
        scores_BTV: Tensor = self.head(x_BTC)
        return scores_BTV

    def forward(self, tokens_BT: Tensor, context: Context | None = None) -> Tensor:
        return self.logits(self.hidden(tokens_BT, context)[0])
