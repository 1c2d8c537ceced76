"""Floating-point operations of a token, counted from the layers of a network.

A product of a vector and a matrix is two operations a weight. Attention adds the products with the
keys and values that a token sees, on average over a text of `context` tokens; a state that is
written and read adds its size. What is element by element (norms, activations, gates) is left out:
it is a small share everywhere. Training counts three times the forward pass (arXiv:2001.08361,
section 2.1).
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from stemma.nn.attention import Attention
from stemma.nn.feature_map import Favor, TrigonometricFavor
from stemma.nn.linear_attention import LinearAttention
from stemma.nn.mlp import GLU, MLP
from stemma.nn.moe import MoE
from stemma.nn.recurrent import Recurrence
from stemma.nn.stack import sublayers_of


def flops_per_token(model: Any, context: int) -> int:
    """Operations of a forward pass for each token of texts of `context` tokens."""
    for each in sublayers_of(model.blocks):
        for layer in each.values():
            if not isinstance(layer, tuple(KINDS)):
                raise TypeError(f"the operations of a {type(layer).__name__} are not known")
    linear = (module for module in model.modules() if isinstance(module, nn.Linear))
    total: float = sum(2 * module.weight.numel() for module in linear)
    for module in model.modules():
        for kind, count in KINDS.items():
            if isinstance(module, kind):
                total += count(module, context)
    if getattr(model, "head", None) is None:  # tied: the embedding's weights are used once more
        total += 2 * model.embedding.weight.numel()
    return int(total)


Kind = Literal["recurrent", "attention", "linear", "experts"]


def kind_of(model: Any) -> Kind:
    """What mixes a network's tokens, or its experts where it has any."""
    layers = [layer for each in sublayers_of(model.blocks) for layer in each.values()]
    for layer, kind in TOLD_BY.items():
        if any(isinstance(each, layer) for each in layers):
            return kind
    return "attention"


def training_flops_per_token(model: Any, context: int) -> int:
    """Operations of a step of training for each token: forward, and twice that backward."""
    return 3 * flops_per_token(model, context)


def _attention(layer: Any, context: int) -> float:
    """Scores and mixtures: two products of each head with every key that is seen."""
    window = min(layer.mask.window or context, context)
    seen = window - window * (window - 1) / (2 * context)  # the first tokens see fewer
    heads_width: int = layer.query.weight.shape[0]
    return float(4 * heads_width * seen)


def _linear_attention(layer: Any, context: int) -> float:
    """The matrix of each head is written and read; the delta rule reads it before writing too.

    Random features are products as well: every direction with each query and each key.
    """
    head = torch.zeros(1, 1, 1, layer.head_dim)
    features: int = layer.feature_map(head).values_BHTF.shape[-1]
    inner: int = layer.value.weight.shape[0]
    directions = layer.feature_map.count if isinstance(layer.feature_map, RANDOM) else 0
    return float(2 * inner * (features * (3 if layer.rule.learns_rate else 2) + 2 * directions))


def _nothing_more(layer: Any, context: int) -> float:
    """Its matrices are all there is."""
    return 0.0


def _experts(layer: Any, context: int) -> float:
    """Those experts that a token asks."""
    weights: int = sum(parameter.numel() for parameter in layer.experts.parameters())
    return float(2 * weights * layer.choose.choices / layer.experts.num_experts)


RANDOM = (Favor, TrigonometricFavor)
KINDS: dict[type, Callable[[Any, int], float]] = {
    Attention: _attention,
    LinearAttention: _linear_attention,
    MoE: _experts,
    Recurrence: _nothing_more,
    MLP: _nothing_more,
    GLU: _nothing_more,
}
TOLD_BY: dict[type, Kind] = {MoE: "experts", LinearAttention: "linear", Recurrence: "recurrent"}
