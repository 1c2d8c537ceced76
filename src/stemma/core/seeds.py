"""Seeds: every random stream is counted by what it is for, never by the order of calls.

So weights do not depend on which parameter is filled first, and a resumed run meets the same
numbers as one that never stopped.
"""

import hashlib

import torch


def generator_for(seed: int, *names: object) -> torch.Generator:
    """A random stream of its own for every seed and name: `generator_for(0, "step", 3)`."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
