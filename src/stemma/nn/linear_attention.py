"""Linear attention: a sublayer that keeps a matrix instead of keys and values.

What the features are and how the matrix is written are values that are handed in: with elu + 1 and
a normaliser it is the Linear Transformer (arXiv:2006.16236), with random features the Performer
(arXiv:2009.14794), with the delta rule the Delta network (arXiv:2102.11174). Memory is flat in
time, and sums are kept in fp32 at least, whatever the precision of the model.

Axes: B batch, T time, H heads, F features, D width of one head, C model width
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stemma.nn.attention import NO_BIAS, Biases, split_heads
from stemma.nn.cache import Slots, TensorState
from stemma.nn.context import Context
from stemma.nn.fast_weight import NOTHING, Memory, Rule, Tokens, chunked, recurrent
from stemma.nn.feature_map import FeatureMap, Features
from stemma.nn.residual import Losses

CHUNK = 64  # tokens at once: a product of this size is where the matrix units are busy


class LinearAttention(nn.Module):
    """Causal linear self attention; with a cache, the memory goes on from pass to pass.

    A rule that learns how much to write gets it from `beta`, one number a head and token,
    sigmoid(W_beta x), arXiv:2102.11174, equation 21.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        head_dim: int,
        feature_map: FeatureMap,
        rule: Rule,
        bias: Biases = NO_BIAS,
        dropout: float = 0.0,
        chunk: int = CHUNK,
    ) -> None:
        super().__init__()
        self.head_dim, self.feature_map, self.rule, self.chunk = head_dim, feature_map, rule, chunk
        inner = num_heads * head_dim
        self.query = nn.Linear(width, inner, bias=bias[0])
        self.key = nn.Linear(width, inner, bias=bias[1])
        self.value = nn.Linear(width, inner, bias=bias[2])
        self.output = nn.Linear(inner, width, bias=bias[3])
        self.beta = nn.Linear(width, num_heads, bias=False) if rule.learns_rate else None
        self.dropout = nn.Dropout(dropout)

    def new_state(self, slots: Mapping[int | None, Slots]) -> TensorState:
        """Room for the memory; it needs no slots."""
        return TensorState()

    def forward(self, x_BTC: Tensor, context: Context) -> tuple[Tensor, Losses]:
        tokens = self._tokens(x_BTC, context)
        state = context.cache if isinstance(context.cache, TensorState) else None
        if state is not None and tokens.run_BT is not None:
            raise ValueError("document ids and caches do not go together")
        memory = None if state is None else recall(state)
        if x_BTC.shape[1] == 1:
            read_BHTD, memory = recurrent(self.rule, tokens, memory)
        else:
            read_BHTD, memory = chunked(self.rule, tokens, memory, size=self.chunk)
        if state is not None:
            remember(state, memory)
        mixed_BTC = read_BHTD.transpose(1, 2).flatten(-2).type_as(x_BTC)
        return self.dropout(self.output(mixed_BTC)), {}

    def _tokens(self, x_BTC: Tensor, context: Context) -> Tokens:
        projections = self.query, self.key, self.value
        query, key, value = (
            split_heads(raised(projection(x_BTC)), self.head_dim).transpose(1, 2)
            for projection in projections
        )
        rate_BTH = None if self.beta is None else raised(self.beta(x_BTC)).sigmoid()
        return Tokens(
            self.feature_map(query),
            silenced(self.feature_map(key), context.real_BT),
            value,
            None if rate_BTH is None else rate_BTH.transpose(1, 2),
            runs(context.document_ids_BT, context.real_BT),
        )


def raised(x: Tensor) -> Tensor:
    """The tensor in fp32 at least: long sums in half precision lose what comes late."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def silenced(key: Features, real_BT: Tensor | None) -> Features:
    """Features of keys that write nothing where there is padding."""
    if real_BT is None:
        return key
    hidden_B1T = ~real_BT[:, None]
    values = key.values_BHTF.masked_fill(hidden_B1T[..., None], 0.0)
    unit = None if key.unit_BHT is None else key.unit_BHT.masked_fill(hidden_B1T, NOTHING)
    return Features(values, unit)


def runs(document_ids_BT: Tensor | None, real_BT: Tensor | None) -> Tensor | None:
    """Numbers (B, T) that grow by one where another document begins; None where there are none.

    Padding belongs to what is before it, whatever its id says.

    >>> runs(torch.tensor([[7, 7, 3, 3, 3]]), None)
    tensor([[0, 0, 1, 1, 1]])
    """
    if document_ids_BT is None:
        return None
    if real_BT is not None:
        real_BT = real_BT.expand_as(document_ids_BT)
        place_T = torch.arange(real_BT.shape[1], device=real_BT.device)
        last_real_BT = (place_T * real_BT).cummax(dim=1).values
        document_ids_BT = document_ids_BT.gather(1, last_real_BT)
    begins_BT = torch.zeros_like(document_ids_BT)
    begins_BT[:, 1:] = document_ids_BT[:, 1:] != document_ids_BT[:, :-1]
    return begins_BT.cumsum(dim=1)


def recall(state: TensorState) -> Memory | None:
    """The memory that the last pass left in a state, None before the first."""
    matrix = state.get("matrix")
    if matrix is None:
        return None
    return Memory(matrix, state.get("normaliser"), state.get("unit"))


def remember(state: TensorState, memory: Memory) -> None:
    """Leave the parts of a memory that a rule keeps in a state."""
    parts = {
        "matrix": memory.matrix_BHFD,
        "normaliser": memory.normaliser_BHF,
        "unit": memory.unit_BH,
    }
    state.put(**{name: part for name, part in parts.items() if part is not None})
