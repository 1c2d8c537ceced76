"""FlexAttention: the kernel that skips whole blocks of scores that a mask leaves empty.

On a GPU, windows, packed documents and padded batches are cheaper this way than with a mask of
every score. On a CPU the plain kernel is used: there FlexAttention compiles for seconds and gains
nothing. Both give the same numbers, which the tests check.

Axes: B batch, T queries, S keys, H heads, G key-value heads, D width of one head
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
LEAST = 128  # queries and keys below which whole blocks cannot be skipped


def pays(query_BT: Tensor, key_BS: Tensor) -> bool:
    """Whether blocks are worth it: on a GPU, for passes of many tokens."""
    return query_BT.is_cuda and min(query_BT.shape[1], key_BS.shape[1]) >= LEAST


def block_mask(visible: MaskMod, rows: int, query_length: int, key_length: int, device: Any) -> Any:
    """Which blocks of scores have anything to see, for `attend_blocks`."""
    from torch.nn.attention.flex_attention import create_block_mask  # noqa: PLC0415  (seconds)

    return create_block_mask(visible, rows, None, query_length, key_length, device=device)


def attend_blocks(
    query_BHTD: Tensor,
    key_BGSD: Tensor,
    value_BGSD: Tensor,
    block: Any,
    *,
    scale: float | None = None,
) -> Tensor:
    """Scaled dot-product attention over the blocks that are seen; zeros where nothing is."""
    kernel = _kernel(query_BHTD.is_cuda)
    mixed_BHTD: Tensor = kernel(
        query_BHTD,
        key_BGSD,
        value_BGSD,
        block_mask=block,
        scale=scale,
        enable_gqa=query_BHTD.shape[1] != key_BGSD.shape[1],
    )
    return mixed_BHTD


@cache
def _kernel(compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention  # noqa: PLC0415  (seconds)

    kernel: Any = flex_attention
    found: Callable[..., Any] = torch.compile(kernel) if compiled else kernel
    return found
