"""What a block may see besides its stream: one frozen value, so that signatures never grow.

A context holds tensors and caches only. `caches` has one entry per layer, found by the layer's
index; `cache` is the entry of the layer that runs, set by the stack. `tables` and `visible` are
made once per forward pass by the stack and shared by all layers: rotary tables by position
value, visibility by mask value.

Axes: B batch, T queries, S keys, C model width
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from stemma.nn.cache import Cache, LayerCache


@dataclass(frozen=True, kw_only=True)
class Visible:
    """Who sees whom, ready for the attention kernel.

    `mask` is None where every key is visible to every query or where `causal` says it all;
    otherwise a boolean tensor (B or 1, 1, T, S), true where the query sees the key.
    """

    mask: Tensor | None = None
    causal: bool = False


@dataclass(frozen=True, kw_only=True)
class Context:
    """Everything a forward pass may be told besides the tokens. All fields are optional.

    Attributes:
        positions_BT: absolute positions, int64, -1 for padding; default 0, 1, 2, …
        document_ids_BT: tokens see only keys of the same document id (packed samples).
        padding_BT: true where a token is real. Padding is masked by this, never by its id.
        memory: the encoder's output (B, S, C), for cross attention.
        caches: keys and values of earlier calls; the new tokens are appended.
    """

    positions_BT: Tensor | None = None
    document_ids_BT: Tensor | None = None
    padding_BT: Tensor | None = None
    memory: Tensor | None = None
    caches: Cache | None = None
    cache: LayerCache | None = None
    tables: Mapping[Any, tuple[Tensor, Tensor]] = field(default_factory=dict)
    visible: Mapping[Any, Visible] = field(default_factory=dict)
