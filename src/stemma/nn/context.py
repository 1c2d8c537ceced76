"""What a block may see besides its stream: one frozen value, so that signatures never grow.

A context holds tensors and caches only. `caches` has the states of every layer, found by the
layer's index; `states` are those of the layer that runs, set by the stack, and `cache` is that of
the sublayer that runs, set by the block. `tables`, `visible` and `real_BT` are made once per
forward pass by the stack and shared by all layers: rotary tables and visibility, by mask and
position.

Axes: B batch, T queries, S keys, M memory (source) tokens, H heads, C model width
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from stemma.nn.cache import Cache, State


@dataclass(frozen=True, kw_only=True)
class Visible:
    """Who sees whom, ready for the attention kernel.

    `mask` is None where every key is visible to every query or where `causal` says it all;
    otherwise a boolean tensor (B or 1, 1, T, S), true where the query sees the key, or one of
    numbers (B or 1, H, T, S) to add to the scores, minus infinity where it does not. `block` is
    the same for FlexAttention, which skips whole blocks that nobody sees.
    """

    mask: Tensor | None = None
    causal: bool = False
    block: Any = None

    def heads(self, first: int, count: int) -> "Visible":
        """The same for `count` heads from the first on, where there is a number a head."""
        if self.mask is None or self.mask.shape[1] in (1, count):
            return self
        return replace(self, mask=self.mask[:, first : first + count])


@dataclass(frozen=True, kw_only=True)
class Context:
    """Everything a forward pass may be told besides the tokens. All fields are optional.

    Attributes:
        positions_BT: absolute positions, int64, -1 for padding; default 0, 1, 2, …
        document_ids_BT: tokens see only tokens of the same document id (packed samples). A document
            is one unbroken stretch: layers with a state begin anew wherever the id changes.
        padding_BT: true where a token is real. Padding is masked by this, never by its id.
        segments_BT: which sentence of a pair a token is of (BERT).
        memory_BMC: the encoder's output, for cross attention and decoders that begin from it.
        memory_padding_BM: true where a token of the memory is real.
        caches: what earlier calls left; the new tokens are appended.
        real_BT: true where a token is real, however that was said; None where all are.
    """

    positions_BT: Tensor | None = None
    document_ids_BT: Tensor | None = None
    padding_BT: Tensor | None = None
    segments_BT: Tensor | None = None
    memory_BMC: Tensor | None = None
    memory_padding_BM: Tensor | None = None
    caches: Cache | None = None
    states: Mapping[str, State] | None = None
    cache: State | None = None
    real_BT: Tensor | None = None
    tables: Mapping[Any, Any] = field(default_factory=dict)
    visible: Mapping[Any, Visible] = field(default_factory=dict)
