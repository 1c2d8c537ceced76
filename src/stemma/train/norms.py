"""Norms by layer: how large the gradients and the weights of each part of a network are.

A layer is a block, or a part outside of all blocks. All norms of a step are computed by one fused
call and fetched at once.
"""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

LAYER = re.compile(r"(?:.*\.)?blocks\.\d+(?=\.)|(?:(?:encoder|decoder)\.)?[^.]+")


def layer_of(name: str) -> str:
    """The layer that a parameter belongs to.

    >>> layer_of("blocks.0.attention.query.weight"), layer_of("encoder.blocks.1.mlp.up.weight")
    ('blocks.0', 'encoder.blocks.1')
    >>> layer_of("embedding.weight"), layer_of("decoder.norm.weight")
    ('embedding', 'decoder.norm')
    """
    found = LAYER.match(name)
    return found.group() if found else name


def layer_norms(kind: str, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The norm of each layer's tensors together, as `KIND/LAYER`, on their device."""
    named = list(tensors)
    squares: dict[str, list[Tensor]] = {}
    norms = torch._foreach_norm([tensor for _, tensor in named]) if named else ()
    for (name, _), norm in zip(named, map(whole, norms), strict=True):
        squares.setdefault(f"{kind}/{layer_of(name)}", []).append(norm.square())
    return {name: torch.stack(parts).sum().sqrt() for name, parts in squares.items()}


def whole(norm: Any) -> Tensor:
    """The norm of a tensor that may be spread over processes."""
    found: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return found


def norms_of(model: nn.Module) -> dict[str, Tensor]:
    """`gradient_norm/LAYER` and `parameter_norm/LAYER` of all layers, on their device."""
    learning = [(n, p) for n, p in model.named_parameters() if p.grad is not None]
    gradients = [(name, p.grad) for name, p in learning if p.grad is not None]
    weights = [(name, p.detach()) for name, p in model.named_parameters()]
    return layer_norms("gradient_norm", gradients) | layer_norms("parameter_norm", weights)
