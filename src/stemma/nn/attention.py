"""Softmax attention: one module for multi-head, grouped and multi-query, told apart by numbers.

Axes: B batch, T queries, S keys, H heads, G key-value heads (G divides H), D width of one head,
C model width
"""

import torch.nn.functional as F
from torch import Tensor, nn

from stemma.nn.context import Context, Visible
from stemma.nn.mask import Causal, Mask
from stemma.nn.position import Rope
from stemma.nn.residual import Losses

NO_BIAS = (False, False, False, False)  # query, key, value, output
ALL_BIAS = (True, True, True, True)


def attend(
    query_BHTD: Tensor,
    key_BGSD: Tensor,
    value_BGSD: Tensor,
    visible: Visible,
    *,
    dropout: float = 0.0,
) -> Tensor:
    """Scaled dot-product attention, arXiv:1706.03762, equation 1.

    A query that sees no key (padding) gives zeros, not NaN.
    """
    return F.scaled_dot_product_attention(
        query_BHTD,
        key_BGSD,
        value_BGSD,
        attn_mask=visible.mask,
        is_causal=visible.causal,
        dropout_p=dropout,
        enable_gqa=query_BHTD.shape[1] != key_BGSD.shape[1],
    )


class Attention(nn.Module):
    """Self attention over the stream; keys and values are kept in the layer's cache, if any."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        num_kv_heads: int,
        head_dim: int,
        mask: Mask = Causal(),  # noqa: B008  (a frozen value)
        position: Rope | None = None,
        bias: tuple[bool, bool, bool, bool] = NO_BIAS,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.head_dim, self.mask, self.position = head_dim, mask, position
        self.query = nn.Linear(width, num_heads * head_dim, bias=bias[0])
        self.key = nn.Linear(width, num_kv_heads * head_dim, bias=bias[1])
        self.value = nn.Linear(width, num_kv_heads * head_dim, bias=bias[2])
        self.output = nn.Linear(num_heads * head_dim, width, bias=bias[3])
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTC: Tensor, context: Context) -> tuple[Tensor, Losses]:
        # heads are unflattened by their width: tensor parallel then needs no change here
        query, key, value = (
            projection(x_BTC).unflatten(-1, (-1, self.head_dim))
            for projection in (self.query, self.key, self.value)
        )
        if self.position is not None:
            table = context.tables[self.position]
            query, key = self.position.rotate(query, table), self.position.rotate(key, table)
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))
        if context.cache is not None:
            key, value = context.cache.add(key, value)
        dropout = self.dropout.p if self.training else 0.0
        mixed_BHTD = attend(query, key, value, context.visible[self.mask], dropout=dropout)
        return self.dropout(self.output(mixed_BHTD.transpose(1, 2).flatten(-2))), {}
