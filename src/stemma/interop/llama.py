"""Llama as Hugging Face stores it: `LlamaForCausalLM`.

Query and key are already in the layout of halves that our rotary positions use, so every tensor
passes as it is. What the file says of the angles is read in `rope.py`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from stemma.interop.rope import read_rope, write_rope
from stemma.interop.tables import REQUIRED, Entry, Keys, pick
from stemma.models.llama import LlamaConfig, build

__all__ = ["build"]

MODEL_TYPE = "llama"
ARCHITECTURE = "LlamaForCausalLM"
CONFIG = LlamaConfig
PREFIX = ""
HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
IGNORED = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"  # written before transformers 4.32

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
    numbers = pick(foreign, KEYS)
    if numbers["num_kv_heads"] is None:
        numbers["num_kv_heads"] = numbers["num_heads"]
    if numbers["head_dim"] is None:
        del numbers["head_dim"]
    return {**numbers, **read_rope(foreign)}


def config_to_foreign(config: LlamaConfig) -> dict[str, Any]:
    """What `config.json` says of the network."""
    return {
        **{theirs: getattr(config, ours) for ours, (theirs, _) in KEYS.items()},
        "hidden_act": "silu",
        **write_rope(config.rope_base, config.rope_scaling, dim=config.head_dim),
    }


LAYER = {  # theirs: (ours, the config key of each axis)
    "input_layernorm": ("attention_norm", "hidden_size"),
    "self_attn.q_proj": ("attention.query", "num_attention_heads*head_dim hidden_size"),
    "self_attn.k_proj": ("attention.key", "num_key_value_heads*head_dim hidden_size"),
    "self_attn.v_proj": ("attention.value", "num_key_value_heads*head_dim hidden_size"),
    "self_attn.o_proj": ("attention.output", "hidden_size num_attention_heads*head_dim"),
    "post_attention_layernorm": ("mlp_norm", "hidden_size"),
    "mlp.gate_proj": ("mlp.gate", "intermediate_size hidden_size"),
    "mlp.up_proj": ("mlp.up", "intermediate_size hidden_size"),
    "mlp.down_proj": ("mlp.down", "hidden_size intermediate_size"),
}


def entries(config: LlamaConfig) -> Iterator[Entry]:
    """Every tensor of the file, in the order of the network."""
    said = {"self_attn": config.attention_bias, "mlp": config.mlp_bias}
    biased = tuple(part for part, has in said.items() if has)
    yield Entry(EMBEDDING, ("embedding.weight",), ("vocab_size", "hidden_size"))
    for index in range(config.depth):
        for name, (part, words) in LAYER.items():
            theirs, ours = f"model.layers.{index}.{name}", f"blocks.{index}.{part}"
            keys = tuple(words.split())
            yield Entry(f"{theirs}.weight", (f"{ours}.weight",), keys)
            if name.startswith(biased):
                yield Entry(f"{theirs}.bias", (f"{ours}.bias",), keys[:1])
    yield Entry("model.norm.weight", ("norm.weight",), ("hidden_size",))
    if not config.tied:
        yield Entry(HEAD, ("head.weight",), ("vocab_size", "hidden_size"))
