"""Qwen 3 as Hugging Face stores it: `Qwen3ForCausalLM`.

The tensors have Llama's names and layout, and two norms more in every block, of queries and of
keys. Windows are told as Qwen 2 tells them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from stemma.interop.layer_types import read_late_windows, write_late_windows
from stemma.interop.llama_layout import (
    ATTENTION,
    EMBEDDING,
    HEAD,
    IGNORED,
    MLP,
    entries_of,
    pick_heads,
)
from stemma.interop.rope import read_rope, write_rope
from stemma.interop.tables import REQUIRED, Entry, Keys
from stemma.models.qwen3 import Qwen3Config, build

__all__ = ["EMBEDDING", "HEAD", "IGNORED", "build"]

MODEL_TYPE = "qwen3"
ARCHITECTURE = "Qwen3ForCausalLM"
CONFIG = Qwen3Config
PREFIX = ""

KEYS: Keys = {
    "width": ("hidden_size", REQUIRED),
    "depth": ("num_hidden_layers", REQUIRED),
    "num_heads": ("num_attention_heads", REQUIRED),
    "num_kv_heads": ("num_key_value_heads", 32),
    "head_dim": ("head_dim", 128),
    "hidden": ("intermediate_size", REQUIRED),
    "vocab_size": ("vocab_size", REQUIRED),
    "context": ("max_position_embeddings", 32768),
    "window": ("sliding_window", 4096),
    "attention_bias": ("attention_bias", False),
    "norm_eps": ("rms_norm_eps", 1e-6),
    "tied": ("tie_word_embeddings", False),
    "dropout": ("attention_dropout", 0.0),
    "initial_std": ("initializer_range", 0.02),
}
FIXED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "is_causal": (True,),
    "partial_rotary_factor": (1.0, None),
}
HARMLESS = frozenset(
    "rope_theta rope_scaling rope_parameters original_max_position_embeddings "
    "use_sliding_window sliding_window max_window_layers layer_types".split()
)


def config_from_foreign(foreign: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers for `Qwen3Config` from a `config.json`.

    Raises KeyError for a key that must be there, ValueError for a setting we cannot compute.
    """
    numbers = pick_heads(foreign, KEYS)
    windows = read_late_windows(foreign, depth=numbers["depth"])
    return {**numbers, **windows, **read_rope(foreign)}


def config_to_foreign(config: Qwen3Config) -> dict[str, Any]:
    """What `config.json` says of the network."""
    return {
        **{theirs: getattr(config, ours) for ours, (theirs, _) in KEYS.items()},
        "hidden_act": "silu",
        **write_late_windows(config.window, config.windowed, config.depth),
        **write_rope(config.rope_base, config.rope_scaling, dim=config.head_dim),
    }


LAYER = {  # theirs: (ours, the config key of each axis)
    "input_layernorm": ("attention_norm", "hidden_size"),
    **ATTENTION,
    "self_attn.q_norm": ("attention.query_norm", "head_dim"),
    "self_attn.k_norm": ("attention.key_norm", "head_dim"),
    "post_attention_layernorm": ("mlp_norm", "hidden_size"),
    **MLP,
}


def entries(config: Qwen3Config) -> Iterator[Entry]:
    """Every tensor of the file, in the order of the network."""
    biased = ATTENTION if config.attention_bias else {}
    return entries_of(config, LAYER, biased=biased.__contains__)
