"""Qwen 2 and 2.5 as Hugging Face stores them: `Qwen2ForCausalLM`.

The tensors have Llama's names and layout, and query, key and value their biases. Which blocks have
a window is said by `layer_types`, in older files by `max_window_layers`, and nothing of it holds
unless `use_sliding_window` is true.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from stemma.interop.layer_types import read_late_windows, write_late_windows
from stemma.interop.llama_layout import EMBEDDING, HEAD, IGNORED, LLAMA, entries_of, pick_heads
from stemma.interop.rope import read_rope, write_rope
from stemma.interop.tables import REQUIRED, Entry, Keys
from stemma.models.qwen2 import Qwen2Config, build

__all__ = ["EMBEDDING", "HEAD", "IGNORED", "build"]

MODEL_TYPE = "qwen2"
ARCHITECTURE = "Qwen2ForCausalLM"
CONFIG = Qwen2Config
PREFIX = ""

KEYS: Keys = {
    "width": ("hidden_size", REQUIRED),
    "depth": ("num_hidden_layers", REQUIRED),
    "num_heads": ("num_attention_heads", REQUIRED),
    "num_kv_heads": ("num_key_value_heads", 32),
    "head_dim": ("head_dim", None),
    "hidden": ("intermediate_size", REQUIRED),
    "vocab_size": ("vocab_size", REQUIRED),
    "context": ("max_position_embeddings", 32768),
    "window": ("sliding_window", 4096),
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
    """Numbers for `Qwen2Config` from a `config.json`.

    Raises KeyError for a key that must be there, ValueError for a setting we cannot compute.
    """
    numbers = pick_heads(foreign, KEYS)
    windows = read_late_windows(foreign, depth=numbers["depth"])
    return {**numbers, **windows, **read_rope(foreign)}


def config_to_foreign(config: Qwen2Config) -> dict[str, Any]:
    """What `config.json` says of the network."""
    return {
        **{theirs: getattr(config, ours) for ours, (theirs, _) in KEYS.items()},
        "hidden_act": "silu",
        **write_late_windows(config.window, config.windowed, config.depth),
        **write_rope(config.rope_base, config.rope_scaling, dim=config.head_dim),
    }


BIASED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def entries(config: Qwen2Config) -> Iterator[Entry]:
    """Every tensor of the file, in the order of the network."""
    return entries_of(config, LLAMA, biased=BIASED.__contains__)
