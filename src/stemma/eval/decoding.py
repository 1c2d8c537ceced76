"""What decoding costs as a text grows: milliseconds a token, and the bytes that are kept.

A text of `length` tokens is read, then single tokens are timed on top of it. What is kept is told
by the cache itself, allocated for exactly the tokens there are.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from stemma.nn.context import Context
from stemma.nn.mode import evaluating

TIMED = 32  # tokens whose median is taken
CHUNK = 256  # tokens read at once, so that a long text needs no large mask


@dataclass(frozen=True)
class DecodeCost:
    """The cost of the next token after `length` tokens."""

    length: int
    milliseconds: float
    state_bytes: int


@torch.inference_mode()
def decode_costs(model: Any, lengths: Sequence[int], *, seed: int = 0) -> Iterator[DecodeCost]:
    """One row of random tokens read up to each length in turn, ascending, and timed there."""
    tokens = torch.randint(
        0,
        model.config.vocab_size,
        (1, max(lengths) + TIMED),
        generator=torch.Generator().manual_seed(seed),
    )
    with evaluating(model.modules()):
        for length in sorted(lengths):
            cache = model.new_cache(length + TIMED)
            for part in torch.split(tokens[:, :length], CHUNK, dim=1):
                model(part, Context(caches=cache))
            taken = []
            for place in range(length, length + TIMED):
                started = time.perf_counter()
                model(tokens[:, place : place + 1], Context(caches=cache))
                taken.append(time.perf_counter() - started)
            yield DecodeCost(length, 1000 * median(taken), cache.nbytes)
