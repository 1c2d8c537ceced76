"""Gemma 3 as llama.cpp stores it: the metadata of its config, and the names of its tensors.

llama.cpp multiplies by a norm's weight as it stands, where ours and Hugging Face's multiply by one
more than it; its converter therefore adds one, and that one is taken off here. The rows of query
and key are in halves as ours are. What the format leaves to the reader is llama.cpp's knowledge:
which blocks have a window, the base of their angles, and the scale of the largest model's scores.
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
from stemma.models.gemma3 import Gemma3Config

ARCHITECTURE = "gemma3"
IGNORED = re.compile("(?!)")  # nothing: every tensor is a parameter
SCALING, FACTOR = "rope.scaling.type", "rope.scaling.factor"
DEPTH_OF_27B = 62  # the one size whose scores are divided by the root of width / num_heads

KEYS: Keys = {
    "width": ("embedding_length", REQUIRED),
    "depth": ("block_count", REQUIRED),
    "num_heads": ("attention.head_count", REQUIRED),
    "num_kv_heads": ("attention.head_count_kv", None),
    "head_dim": ("attention.key_length", REQUIRED),
    "hidden": ("feed_forward_length", REQUIRED),
    "context": ("context_length", REQUIRED),
    "window": ("attention.sliding_window", REQUIRED),
    "norm_eps": ("attention.layer_norm_rms_epsilon", REQUIRED),
    "rope_base": ("rope.freq_base", REQUIRED),
    "local_rope_base": ("rope.freq_base_swa", 10_000.0),
}
REFUSED: Mapping[str, tuple[Any, ...]] = {
    **FIXED,
    SCALING: ("none", "linear"),
    "attention.sliding_window_pattern": (6,),
}

LAYER = {  # theirs: (ours, the metadata key of each axis)
    "attn_norm": ("attention_norm", "embedding_length"),
    "attn_q": ("attention.query", "attention.head_count embedding_length"),
    "attn_k": ("attention.key", "attention.head_count_kv embedding_length"),
    "attn_v": ("attention.value", "attention.head_count_kv embedding_length"),
    "attn_output": ("attention.output", "embedding_length attention.head_count"),
    "attn_q_norm": ("attention.query_norm", "attention.key_length"),
    "attn_k_norm": ("attention.key_norm", "attention.key_length"),
    "post_attention_norm": ("attention_post_norm", "embedding_length"),
    "ffn_norm": ("mlp_norm", "embedding_length"),
    "ffn_gate": ("mlp.gate", "feed_forward_length embedding_length"),
    "ffn_up": ("mlp.up", "feed_forward_length embedding_length"),
    "ffn_down": ("mlp.down", "embedding_length feed_forward_length"),
    "post_ffw_norm": ("mlp_post_norm", "embedding_length"),
}


def read_config(header: Header) -> Gemma3Config:
    """The numbers of the network.

    Raises ModelError that names the key or tensor for anything we cannot compute exactly.
    """
    numbers = read_numbers(header, ARCHITECTURE, KEYS, REFUSED)
    numbers |= {"rope_scaling": _scaling(header), "query_scalar": _query_scalar(numbers)}
    config = configured(header, ARCHITECTURE, KEYS, Gemma3Config, numbers)
    require_widths(header, ARCHITECTURE, config.head_dim)
    log_unknown(header, ARCHITECTURE, {key for key, _ in KEYS.values()} | REFUSED.keys() | {FACTOR})
    return config


def _query_scalar(numbers: Mapping[str, Any]) -> Any:
    if numbers["depth"] == DEPTH_OF_27B and numbers["num_heads"]:
        return numbers["width"] // numbers["num_heads"]
    return numbers["head_dim"]


def _scaling(header: Header) -> dict[str, Any]:
    """How the angles are scaled where a block sees all; blocks with a window never scale theirs."""
    factor = header.one(f"{ARCHITECTURE}.{FACTOR}", 1.0)
    if header.one(f"{ARCHITECTURE}.{SCALING}") == "none" or factor in (0.0, 1.0):
        return {"kind": "none"}
    return {"kind": "linear", "factor": factor}


def entries(config: Gemma3Config) -> Iterator[Entry]:
    """Every tensor of the file, in the order of the network."""
    yield Entry(EMBEDDING, ("embedding.weight",), ("vocab_size", "embedding_length"))
    for index in range(config.depth):
        for theirs, (ours, keys) in LAYER.items():
            name, own = f"blk.{index}.{theirs}.weight", f"blocks.{index}.{ours}.weight"
            yield Entry(name, (own,), tuple(keys.split()))
    yield Entry("output_norm.weight", ("norm.weight",), ("embedding_length",))
    if not config.tied:
        yield Entry(HEAD, ("head.weight",), ("vocab_size", "embedding_length"))


def as_ours(config: Gemma3Config, name: str, values: Tensor) -> Tensor:
    """A decoded tensor as ours: norms as their distance from one."""
    return values - 1 if name.endswith("norm.weight") else values
