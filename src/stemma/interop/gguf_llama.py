"""Llama as llama.cpp stores it: the metadata of its config, and the names of its tensors.

llama.cpp rotates neighbouring features, 2i with 2i + 1, where our rotary positions and Hugging
Face's pair feature i with i + D/2. Its converter therefore reorders the rows of query and key
inside each head; that is undone here, at the door, and never at run time.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from stemma.interop.gguf_header import Header
from stemma.interop.gguf_numbers import (
    EMBEDDING,
    FIXED,
    HEAD,
    REQUIRED,
    Keys,
    configured,
    log_unknown,
    read_numbers,
    require_widths,
)
from stemma.interop.tables import Entry
from stemma.models.llama import LlamaConfig

ARCHITECTURE = "llama"
SCALING = "rope_freqs.weight"
IGNORED = re.compile(r"blk\.\d+\.attn_rot_embd\.weight")  # a table that old converters wrote

KEYS: Keys = {
    "width": ("embedding_length", REQUIRED),
    "depth": ("block_count", REQUIRED),
    "num_heads": ("attention.head_count", REQUIRED),
    "num_kv_heads": ("attention.head_count_kv", None),
    "hidden": ("feed_forward_length", REQUIRED),
    "context": ("context_length", REQUIRED),
    "norm_eps": ("attention.layer_norm_rms_epsilon", REQUIRED),
    "rope_base": ("rope.freq_base", 10_000.0),
}
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (1.0, 0.0),
    **FIXED,
    "attention.sliding_window": (0,),
}

LAYER = {  # theirs: (ours, the metadata key of each axis)
    "attn_norm": ("attention_norm", "embedding_length"),
    "attn_q": ("attention.query", "attention.head_count embedding_length"),
    "attn_k": ("attention.key", "attention.head_count_kv embedding_length"),
    "attn_v": ("attention.value", "attention.head_count_kv embedding_length"),
    "attn_output": ("attention.output", "embedding_length attention.head_count"),
    "ffn_norm": ("mlp_norm", "embedding_length"),
    "ffn_gate": ("mlp.gate", "feed_forward_length embedding_length"),
    "ffn_up": ("mlp.up", "feed_forward_length embedding_length"),
    "ffn_down": ("mlp.down", "embedding_length feed_forward_length"),
}


def read_config(header: Header) -> LlamaConfig:
    """The numbers of the network.

    Raises ModelError that names the key or tensor for anything we cannot compute exactly.
    """
    if SCALING in header.tensors:  # long-context Llamas: no metadata key tells of it
        what = "scaled rotary positions are not supported"
        raise header.fault(SCALING, what, "use another model")
    numbers = read_numbers(header, ARCHITECTURE, KEYS, REFUSED)
    config = configured(header, ARCHITECTURE, KEYS, LlamaConfig, numbers)
    require_widths(header, ARCHITECTURE, config.head_dim)
    log_unknown(header, ARCHITECTURE, {key for key, _ in KEYS.values()} | REFUSED.keys())
    return config


def entries(config: LlamaConfig) -> Iterator[Entry]:
    """Every tensor of the file, in the order of the network."""
    yield Entry(EMBEDDING, ("embedding.weight",), ("vocab_size", "embedding_length"))
    for index in range(config.depth):
        for theirs, (ours, keys) in LAYER.items():
            name, own = f"blk.{index}.{theirs}.weight", f"blocks.{index}.{ours}.weight"
            yield Entry(name, (own,), tuple(keys.split()))
    yield Entry("output_norm.weight", ("norm.weight",), ("embedding_length",))
    if not config.tied:
        yield Entry(HEAD, ("head.weight",), ("vocab_size", "embedding_length"))


def heads(config: LlamaConfig, name: str) -> int:
    """How many heads' rows llama.cpp has reordered in a tensor of this name, 0 where none."""
    return {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}.get(name.split(".")[-2], 0)


def as_ours(config: LlamaConfig, name: str, values: Tensor) -> Tensor:
    """A decoded tensor in our order of rows."""
    count = heads(config, name)
    return in_halves(values, count) if count else values


def in_halves(rows: Tensor, num_heads: int) -> Tensor:
    """Rows (heads * D, C) from neighbouring pairs to halves: 0, 1, 2, 3 -> 0, 2, 1, 3.

    Of each head, the first of every pair come first, then the second ones.
    """
    pairs = rows.view(num_heads, -1, 2, rows.shape[-1])
    return pairs.transpose(1, 2).reshape(rows.shape)
