"""Llama as Hugging Face stores it: `LlamaForCausalLM`.

Query and key are already in the layout of halves that our rotary positions use, so every tensor
passes as it is. What the file says of the angles is read in `rope.py`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from stemma.interop.llama_layout import EMBEDDING, HEAD, IGNORED, LLAMA, entries_of, pick_heads
from stemma.interop.rope import read_rope, write_rope
from stemma.interop.tables import REQUIRED, Entry, Keys
from stemma.models.llama import LlamaConfig, build

__all__ = ["EMBEDDING", "HEAD", "IGNORED", "build"]

MODEL_TYPE = "llama"
ARCHITECTURE = "LlamaForCausalLM"
CONFIG = LlamaConfig
PREFIX = ""

KEYS: Keys = {
    "width": ("hidden_size", REQUIRED),
    "depth": ("num_hidden_layers", REQUIRED),
    "num_heads": ("num_attention_heads", REQUIRED),
    "num_kv_heads": ("num_key_value_heads", None),
    "head_dim": ("head_dim", None),
    "hidden": ("intermediate_size", REQUIRED),
    "vocab_size": ("vocab_size", REQUIRED),
    "context": ("max_position_embeddings", 2048),
    "attention_bias": ("attention_bias", False),
    "mlp_bias": ("mlp_bias", False),
    "norm_eps": ("rms_norm_eps", 1e-6),
    "tied": ("tie_word_embeddings", False),
    "dropout": ("attention_dropout", 0.0),
    "initial_std": ("initializer_range", 0.02),
}
FIXED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "is_causal": (True,),
    "pretraining_tp": (1, None),
    "rope_interleaved": (False,),
    "partial_rotary_factor": (1.0, None),
}
HARMLESS = frozenset(
    "rope_theta rope_scaling rope_parameters original_max_position_embeddings "
    "is_llama_config".split()
)


def config_from_foreign(foreign: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers for `LlamaConfig` from a `config.json`.

    Raises KeyError for a key that must be there, ValueError for a setting we cannot compute.
    """
    numbers = pick_heads(foreign, KEYS)
    return {**numbers, **read_rope(foreign)}


def config_to_foreign(config: LlamaConfig) -> dict[str, Any]:
    """What `config.json` says of the network."""
    return {
        **{theirs: getattr(config, ours) for ours, (theirs, _) in KEYS.items()},
        "hidden_act": "silu",
        **write_rope(config.rope_base, config.rope_scaling, dim=config.head_dim),
    }


def entries(config: LlamaConfig) -> Iterator[Entry]:
    """Every tensor of the file, in the order of the network."""
    said = {"self_attn": config.attention_bias, "mlp": config.mlp_bias}
    biased = tuple(part for part, has in said.items() if has)
    return entries_of(config, LLAMA, biased=lambda name: name.startswith(biased))
