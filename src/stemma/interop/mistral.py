"""Mistral as Hugging Face stores it: `MistralForCausalLM`.

The tensors have Llama's names and layout, none has a bias. `sliding_window` is 4096 where the file
does not say, and null where there is none.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from stemma.interop.llama_layout import EMBEDDING, HEAD, IGNORED, LLAMA, entries_of, pick_heads
from stemma.interop.rope import read_rope, write_rope
from stemma.interop.tables import REQUIRED, Entry, Keys
from stemma.models.mistral import MistralConfig, build

__all__ = ["EMBEDDING", "HEAD", "IGNORED", "build"]

MODEL_TYPE = "mistral"
ARCHITECTURE = "MistralForCausalLM"
CONFIG = MistralConfig
PREFIX = ""

KEYS: Keys = {
    "width": ("hidden_size", REQUIRED),
    "depth": ("num_hidden_layers", REQUIRED),
    "num_heads": ("num_attention_heads", REQUIRED),
    "num_kv_heads": ("num_key_value_heads", 8),
    "head_dim": ("head_dim", None),
    "hidden": ("intermediate_size", REQUIRED),
    "vocab_size": ("vocab_size", REQUIRED),
    "context": ("max_position_embeddings", 131_072),
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
    "layer_types": (None,),  # Ministral alternates; transformers reads no such key for Mistral
}
HARMLESS = frozenset(
    "rope_theta rope_scaling rope_parameters original_max_position_embeddings".split()
)


def config_from_foreign(foreign: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers for `MistralConfig` from a `config.json`.

    Raises KeyError for a key that must be there, ValueError for a setting we cannot compute.
    """
    numbers = pick_heads(foreign, KEYS)
    return {**numbers, **read_rope(foreign)}


def config_to_foreign(config: MistralConfig) -> dict[str, Any]:
    """What `config.json` says of the network."""
    return {
        **{theirs: getattr(config, ours) for ours, (theirs, _) in KEYS.items()},
        "hidden_act": "silu",
        **write_rope(config.rope_base, config.rope_scaling, dim=config.head_dim),
    }


def entries(config: MistralConfig) -> Iterator[Entry]:
    """Every tensor of the file, in the order of the network."""
    return entries_of(config, LLAMA)
