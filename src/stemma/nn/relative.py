"""T5's learned relative positions: one table for a whole stack, arXiv:1910.10683, section 2.1.

Axes: B batch, T queries, S keys, H heads
"""

import torch
from torch import Tensor, nn

from stemma.nn.position import Buckets


class RelativeBias(nn.Module):
    """A number for each bucket of distances and each head; the stack owns it, all layers use it."""

    def __init__(self, value: Buckets, num_heads: int) -> None:
        super().__init__()
        self.value = value
        self.weight = nn.Parameter(torch.empty(value.count, num_heads))

    def bias(self, query_BT: Tensor, key_BS: Tensor) -> Tensor:
        """What is added to the scores, (B or 1, H, T, S)."""
        return self.weight[self.value.index(query_BT, key_BS)].permute(0, 3, 1, 2)
