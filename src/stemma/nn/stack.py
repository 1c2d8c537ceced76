"""Blocks, the stack that runs them, and the decoder-only language model around it.

The stack prepares what all layers share (rotary tables, visibility) once per forward pass, so a
block sees ready tensors. Parallelism, precision, compilation and activation checkpointing are
applied from outside: nothing here mentions them.

Axes: B batch, T time, S keys, C model width, V vocabulary
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from stemma.nn.cache import Cache
from stemma.nn.context import Context, Visible
from stemma.nn.mask import Causal, Mask
from stemma.nn.norm import Norm
from stemma.nn.residual import Losses, Residual


class Block(nn.Module):
    """Sublayers by name, each with its own norm `NAME_norm`, joined by a residual scheme."""

    def __init__(
        self, width: int, sublayers: Mapping[str, nn.Module], *, norm: Norm, residual: Residual
    ) -> None:
        super().__init__()
        self.residual, self.names = residual, tuple(sublayers)
        for name, layer in sublayers.items():
            self.add_module(f"{name}_norm", norm(width))
            self.add_module(name, layer)

    def forward(self, x_BTC: Tensor, context: Context) -> tuple[Tensor, Losses]:
        pairs = [(getattr(self, f"{name}_norm"), getattr(self, name)) for name in self.names]
        return self.residual(x_BTC, pairs, context)


def run(blocks: nn.ModuleList, x_BTC: Tensor, context: Context) -> tuple[Tensor, Losses]:
    """Send the stream through the blocks; losses come back as `LAYER.NAME`."""
    losses: Losses = {}
    for index, block in enumerate(blocks):
        cache = context.caches.layers[index] if context.caches is not None else None
        x_BTC, new_losses = block(x_BTC, replace(context, cache=cache))
        losses |= {f"{index}.{name}": loss for name, loss in new_losses.items()}
    return x_BTC, losses


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


def look(mask: Mask, query_BT: Tensor, key_BS: Tensor, context: Context) -> Visible:
    """Turn one mask value into what the kernel needs, taking the cheapest form that is exact."""
    plain = context.padding_BT is None and context.document_ids_BT is None
    ragged = context.positions_BT is not None if context.caches is None else context.caches.ragged
    if mask == Causal() and plain and not ragged:
        if query_BT.shape[1] == key_BS.shape[1]:
            return Visible(causal=query_BT.shape[1] > 1)
        if query_BT.shape[1] == 1:
            return Visible()
    visible_BTS = mask(query_BT[:, :, None], key_BS[:, None, :]) & (key_BS >= 0)[:, None, :]
    if context.document_ids_BT is not None:
        if context.caches is not None:
            raise ValueError("document ids and caches do not go together")
        ids = context.document_ids_BT
        visible_BTS = visible_BTS & (ids[:, :, None] == ids[:, None, :])
    return Visible(mask=visible_BTS[:, None])


def prepare(blocks: nn.ModuleList, positions_BT: Tensor, context: Context) -> Context:
    """Build each distinct rotary table and each distinct visibility once for the whole stack."""
    layers: list[Any] = [layer for block in blocks for layer in block.children()]
    masks = {layer.mask for layer in layers if hasattr(layer, "mask")}
    rotaries = {layer.position for layer in layers if getattr(layer, "position", None) is not None}
    key_BS = positions_BT
    if context.caches is not None:
        uneven = context.positions_BT is not None or context.padding_BT is not None
        key_BS = context.caches.extend(positions_BT, ragged=uneven)
    return replace(
        context,
        tables={rotary: rotary.table(positions_BT) for rotary in rotaries},
        visible={mask: look(mask, positions_BT, key_BS, context) for mask in masks},
    )


class LanguageModel(nn.Module):
    """A decoder-only language model: embedding, blocks, final norm, head.

    `config` carries the family's name and version; together they are the model's whole identity.
    A tied head has no parameter of its own.
    """

    def __init__(
        self,
        config: Any,
        blocks: list[Block],
        *,
        norm: Norm,
        learned_positions: int = 0,
        tied: bool,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.config, width, vocab_size = config, config.width, config.vocab_size
        self.embedding = nn.Embedding(vocab_size, width)
        self.position = nn.Embedding(learned_positions, width) if learned_positions else None
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm(width)
        self.head = None if tied else nn.Linear(width, vocab_size, bias=False)
        self.dropout = nn.Dropout(dropout)

    def new_cache(self, capacity: int) -> Cache:
        """An empty cache for `capacity` tokens a row."""
        return Cache(len(self.blocks), capacity)

    def hidden(self, tokens_BT: Tensor, context: Context | None = None) -> tuple[Tensor, Losses]:
        """The stream after the final norm (B, T, C), and the auxiliary losses by layer and name.

        Raises ValueError where a learned position table is too short for the tokens.
        """
        context = context or Context()
        positions_BT = positions_of(tokens_BT, context)
        x_BTC = self.embedding(tokens_BT)
        if self.position is not None:
            last = tokens_BT.shape[1] + (context.caches.length if context.caches else 0)
            if context.positions_BT is None and last > self.position.num_embeddings:
                table = self.position.num_embeddings
                raise ValueError(f"{last} tokens do not fit the model's {table} positions")
            x_BTC = x_BTC + self.position(positions_BT.clamp(min=0))
        context = prepare(self.blocks, positions_BT, context)
        x_BTC, losses = run(self.blocks, self.dropout(x_BTC), context)
        return self.norm(x_BTC), losses

    def logits(self, x_BTC: Tensor) -> Tensor:
        """Scores of every vocabulary entry (B, T, V) from the stream after the final norm."""
        weight = self.embedding.weight if self.head is None else self.head.weight
        return nn.functional.linear(x_BTC, weight)

    def forward(self, tokens_BT: Tensor, context: Context | None = None) -> Tensor:
        return self.logits(self.hidden(tokens_BT, context)[0])
