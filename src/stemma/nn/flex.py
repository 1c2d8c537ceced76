"""FlexAttention: the kernel that skips whole blocks of scores that a mask leaves empty.

On a GPU, windows, packed documents and padded batches are cheaper this way than with a mask of
every score. On a CPU the plain kernel is used: there FlexAttention compiles for seconds and gains
nothing. Both give the same numbers, which the tests check.

Axes: B batch, T queries, S keys, H heads, G key-value heads, D width of one head
"""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
LEAST = 128  # queries and keys below which whole blocks cannot be skipped
NARROWEST = 16  # width of a head below which the compiled kernel refuses
PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)


def on_gpu(tensor: Tensor) -> bool:
    """Whether the compiled kernel can run."""
    return tensor.is_cuda


def pays(query_BT: Tensor, key_BS: Tensor, layers: Iterable[Any]) -> bool:
    """Whether blocks are worth it, and every layer that would use them can.

    On a GPU, for passes of many tokens, without gradients: those of blocks have not been compared
    on a GPU yet, and a CPU has none. The kernel knows no dropout of scores: layers that drop while
    they train get a mask instead.
    """
    long = min(query_BT.shape[1], key_BS.shape[1]) >= LEAST
    if not (on_gpu(query_BT) and long) or torch.is_grad_enabled():
        return False
    return all(
        layer.head_dim >= NARROWEST
        and layer.query.weight.dtype in PRECISIONS
        and not (layer.training and layer.dropout.p)
        for layer in layers
    )


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
