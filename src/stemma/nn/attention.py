"""Softmax attention: one module for multi-head, grouped and multi-query, told apart by numbers.

Axes: B batch, T queries, S keys, H heads, G key-value heads (G divides H), D width of one head,
C model width, M memory (source) tokens
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.nn.cache import LayerCache, Slots, TensorState
from stemma.nn.context import Context, Visible
from stemma.nn.flex import attend_blocks
from stemma.nn.mask import Causal, Mask
from stemma.nn.norm import Norm
from stemma.nn.position import NoPosition, Position
from stemma.nn.residual import Losses

Biases = tuple[bool, bool, bool, bool]  # query, key, value, output
NO_BIAS: Biases = (False, False, False, False)
QKV_BIAS: Biases = (True, True, True, False)
ALL_BIAS: Biases = (True, True, True, True)


def attend(
    query_BHTD: Tensor,
    key_BGSD: Tensor,
    value_BGSD: Tensor,
    visible: Visible,
    *,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Scaled dot-product attention, arXiv:1706.03762, equation 1; `scale` is D^-0.5 if None.

    A query that sees no key (padding) gives zeros, not NaN.
    """
    if visible.block is not None:
        assert not dropout, "blocks are never made for layers that drop scores"
        return attend_blocks(query_BHTD, key_BGSD, value_BGSD, visible.block, scale=scale)
    mask = visible.mask
    if mask is not None and mask.is_floating_point():
        mask = mask.to(query_BHTD.dtype)
    return F.scaled_dot_product_attention(
        query_BHTD,
        key_BGSD,
        value_BGSD,
        attn_mask=mask,
        is_causal=visible.causal,
        dropout_p=dropout,
        scale=scale,
        enable_gqa=query_BHTD.shape[1] != key_BGSD.shape[1],
    )


def split_heads(x_BTC: Tensor, head_dim: int) -> Tensor:
    """The heads side by side in a tensor apart, (B, T, H, D).

    They are split by their width, so tensor parallel, which leaves some to each rank, needs no
    change here.
    """
    return torch.unflatten(x_BTC, -1, (-1, head_dim))


class Attention(nn.Module):
    """Self attention over the stream; keys and values are kept in the layer's cache, if any.

    `qk_norm` normalises each head's queries and keys before they turn, arXiv:2010.04245. `scale`
    multiplies the scores instead of D^-0.5. `first_head` is where this module's heads stand among
    all, for positions with a number a head; a tensor-parallel plan sets it from outside.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        num_kv_heads: int,
        head_dim: int,
        mask: Mask = Causal(),  # noqa: B008  (a frozen value)
        position: Position = NoPosition(),  # noqa: B008  (a frozen value)
        bias: Biases = NO_BIAS,
        dropout: float = 0.0,
        scale: float | None = None,
        qk_norm: Norm | None = None,
    ) -> None:
        super().__init__()
        self.head_dim, self.mask, self.position, self.scale = head_dim, mask, position, scale
        self.first_head = 0
        self.query = nn.Linear(width, num_heads * head_dim, bias=bias[0])
        self.key = nn.Linear(width, num_kv_heads * head_dim, bias=bias[1])
        self.value = nn.Linear(width, num_kv_heads * head_dim, bias=bias[2])
        self.output = nn.Linear(num_heads * head_dim, width, bias=bias[3])
        self.query_norm = qk_norm(head_dim) if qk_norm else nn.Identity()
        self.key_norm = qk_norm(head_dim) if qk_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def new_state(self, slots: Mapping[int | None, Slots]) -> LayerCache:
        """An empty cache for this layer; `slots` has those of its window."""
        return LayerCache(slots[self.mask.window])

    def forward(self, x_BTC: Tensor, context: Context) -> tuple[Tensor, Losses]:
        query, key, value = (
            split_heads(projection(x_BTC), self.head_dim)
            for projection in (self.query, self.key, self.value)
        )
        position, tables = self.position, context.tables[self.mask, self.position]
        query_table, key_table = tables
        query = position.rotate(self.query_norm(query), query_table)
        key = self.key_norm(key)
        if not position.late:
            key = position.rotate(key, key_table)
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))
        if isinstance(context.cache, LayerCache):
            key, value = context.cache.add(key, value)
        if position.late:
            key = position.rotate(key.transpose(1, 2), key_table).transpose(1, 2)
        dropout = self.dropout.p if self.training else 0.0
        visible = context.visible[self.mask, position].heads(self.first_head, query.shape[1])
        mixed_BHTD = attend(query, key, value, visible, dropout=dropout, scale=self.scale)
        return self.dropout(self.output(mixed_BHTD.transpose(1, 2).flatten(-2))), {}


class CrossAttention(nn.Module):
    """Attention from the stream to the encoder's output, arXiv:1706.03762, section 3.2.3.

    The memory's keys and values are computed at the first pass and kept, if there is a cache.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        head_dim: int,
        bias: Biases = NO_BIAS,
        dropout: float = 0.0,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.head_dim, self.scale = head_dim, scale
        inner = num_heads * head_dim
        self.query = nn.Linear(width, inner, bias=bias[0])
        self.key = nn.Linear(width, inner, bias=bias[1])
        self.value = nn.Linear(width, inner, bias=bias[2])
        self.output = nn.Linear(inner, width, bias=bias[3])
        self.dropout = nn.Dropout(dropout)

    def new_state(self, slots: Mapping[int | None, Slots]) -> TensorState:
        """Room for the memory's keys and values."""
        return TensorState()

    def forward(self, x_BTC: Tensor, context: Context) -> tuple[Tensor, Losses]:
        query_BHTD = split_heads(self.query(x_BTC), self.head_dim).transpose(1, 2)
        key_BHMD, value_BHMD = self._memory(context)
        dropout = self.dropout.p if self.training else 0.0
        real_BM = context.memory_padding_BM
        visible = Visible(mask=None if real_BM is None else real_BM[:, None, None, :])
        mixed_BHTD = attend(
            query_BHTD, key_BHMD, value_BHMD, visible, dropout=dropout, scale=self.scale
        )
        return self.dropout(self.output(mixed_BHTD.transpose(1, 2).flatten(-2))), {}

    def _memory(self, context: Context) -> tuple[Tensor, Tensor]:
        """Keys and values of the memory, (B, H, M, D) each."""
        state = context.cache if isinstance(context.cache, TensorState) else TensorState()
        key, value = state.get("key"), state.get("value")
        if key is None or value is None:
            if context.memory_BMC is None:
                raise ValueError("cross attention needs a memory: encode the source first")
            key, value = (
                split_heads(projection(context.memory_BMC), self.head_dim).transpose(1, 2)
                for projection in (self.key, self.value)
            )
            state.put(key=key, value=value)
        return key, value
