"""Who sees whom in one forward pass: tables of angles and visibility, once for each distinct value.

Axes: B batch, T queries, S keys, H heads
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from stemma.nn.context import Context, Visible
from stemma.nn.flex import block_mask, pays
from stemma.nn.mask import Causal, Full, Mask, mask_mod
from stemma.nn.position import Position
from stemma.nn.relative import RelativeBias

Looking = tuple[Mask, Position]


def sights(
    layers: Iterable[Any],
    positions_BT: Tensor,
    keys: Mapping[int | None, Tensor],
    context: Context,
    relative: RelativeBias | None,
) -> tuple[dict[Looking, Any], dict[Looking, Visible]]:
    """Tables, for queries and for keys, and visibility, both by mask and position.

    `layers` are those that see by a mask. `keys` are the positions of the visible slots by window;
    without a cache the queries' own.
    """
    layers = list(layers)
    looking = {(layer.mask, layer.position) for layer in layers}
    turned: dict[Position, Any] = {}
    tables: dict[Looking, Any] = {}
    visible: dict[Looking, Visible] = {}
    for mask, position in looking:
        key_BS = keys.get(mask.window, positions_BT)
        if position not in turned:
            turned[position] = position.table(positions_BT)
        # keys are turned as they come, unless the angles grow with the text
        late = position.table(key_BS) if position.late else turned[position]
        tables[mask, position] = turned[position], late
        owner = relative if relative is not None and relative.value == position else position
        bias = owner.bias(positions_BT, key_BS)
        visible[mask, position] = look(mask, bias, positions_BT, key_BS, context, layers)
    return tables, visible


def look(
    mask: Mask,
    bias_BHTS: Tensor | None,
    query_BT: Tensor,
    key_BS: Tensor,
    context: Context,
    layers: Iterable[Any] = (),
) -> Visible:
    """Turn one mask value into what the kernel needs, taking the cheapest form that is exact.

    Raises ValueError where what a mask looks ahead to is not read in one pass.
    """
    ahead, length = getattr(mask, "ahead", 0), query_BT.shape[1]
    if context.caches is not None and ahead > length == context.caches.length:
        raise ValueError(f"a prefix of {ahead} tokens must be read in one pass, got {length}")
    plain = context.padding_BT is None and context.document_ids_BT is None and bias_BHTS is None
    ragged = context.positions_BT is not None if context.caches is None else context.caches.ragged
    if isinstance(mask, Full) and plain and not ragged:
        return Visible()
    if isinstance(mask, Causal) and plain and not ragged:
        if query_BT.shape[1] == key_BS.shape[1]:
            return Visible(causal=query_BT.shape[1] > 1)
        if query_BT.shape[1] == 1:
            return Visible()
    if context.document_ids_BT is not None and context.caches is not None:
        raise ValueError("document ids and caches do not go together")
    if bias_BHTS is None and pays(query_BT, key_BS, layers):
        return Visible(block=_blocks(mask, query_BT, key_BS, context))
    visible_BTS = mask(query_BT[:, :, None], key_BS[:, None, :]) & (key_BS >= 0)[:, None, :]
    if context.document_ids_BT is not None:
        ids = context.document_ids_BT
        visible_BTS = visible_BTS & (ids[:, :, None] == ids[:, None, :])
    if bias_BHTS is None:
        return Visible(mask=visible_BTS[:, None])
    return Visible(mask=bias_BHTS.masked_fill(~visible_BTS[:, None], -torch.inf))


def _blocks(mask: Mask, query_BT: Tensor, key_BS: Tensor, context: Context) -> Any:
    """The same for FlexAttention: padding and documents joined to the mask."""
    ids_BT = context.document_ids_BT
    rows = max(len(query_BT), len(key_BS), 1 if ids_BT is None else len(ids_BT))
    query_BT, key_BS = query_BT.expand(rows, -1), key_BS.expand(rows, -1)
    ids_BT = None if ids_BT is None else ids_BT.expand(rows, -1)
    sees = mask_mod(mask, query_BT, key_BS)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        row = batch if rows > 1 else torch.zeros_like(batch)  # one row may stand for all
        seen = sees(row, head, query, key) & (key_BS[row, key] >= 0)
        if ids_BT is not None:
            seen = seen & (ids_BT[row, query] == ids_BT[row, key])
        return seen

    return block_mask(visible, rows, query_BT.shape[1], key_BS.shape[1], query_BT.device)
