"""Llama as Hugging Face stores it: `LlamaForCausalLM`.

Query and key are already in the layout of halves that our rotary positions use, so every tensor
passes as it is. The base of the rotary angles is written twice: as `rope_theta` for transformers
4 and inside `rope_parameters` for transformers 5.
"""

from collections.abc import Iterator, Mapping
from typing import Any

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
    "hidden": ("intermediate_size", REQUIRED),
    "vocab_size": ("vocab_size", REQUIRED),
    "context": ("max_position_embeddings", 2048),
    "norm_eps": ("rms_norm_eps", 1e-6),
    "tied": ("tie_word_embeddings", False),
    "dropout": ("attention_dropout", 0.0),
    "initial_std": ("initializer_range", 0.02),
}
FIXED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "pretraining_tp": (1, None),
    "rope_interleaved": (False,),
    "partial_rotary_factor": (1.0, None),
}
HARMLESS = frozenset(
    {"head_dim", "rope_theta", "rope_scaling", "rope_parameters", "is_llama_config"}
)
ROPE_KEYS = {"rope_theta", "rope_type", "type", "partial_rotary_factor"}


def config_from_foreign(foreign: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers for `LlamaConfig` from a `config.json`.

    Raises KeyError for a key that must be there, ValueError for a setting we cannot compute.
    """
    numbers = pick(foreign, KEYS)
    width, heads, head_dim = numbers["width"], numbers["num_heads"], foreign.get("head_dim")
    if head_dim is not None:
        whole = all(isinstance(number, int) for number in (width, heads, head_dim))
        if not whole or head_dim * heads != width:
            raise ValueError(f"head_dim is {head_dim!r}, not hidden_size / num_attention_heads")
    if numbers["num_kv_heads"] is None:
        numbers["num_kv_heads"] = heads
    return {**numbers, "rope_base": _rope_base(foreign)}


def _rope_base(foreign: Mapping[str, Any]) -> Any:
    """The base of the angles, refusing every scheme that scales them."""
    bases = [foreign["rope_theta"]] if foreign.get("rope_theta") is not None else []
    for name in ("rope_parameters", "rope_scaling"):
        rope = foreign.get(name)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            raise ValueError(f"{name} is {rope!r}, not an object")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise ValueError(f"{name} of type {kind!r} is not supported, only 'default'")
        if unknown := sorted(rope.keys() - ROPE_KEYS):
            raise ValueError(f"{name} has the unknown key {unknown[0]!r}")
        bases += [rope["rope_theta"]] if "rope_theta" in rope else []
    if any(base != bases[0] for base in bases):
        raise ValueError(f"rope_theta is given twice, as {bases[0]} and as {bases[-1]}")
    return bases[0] if bases else 10_000.0


def config_to_foreign(config: LlamaConfig) -> dict[str, Any]:
    """What `config.json` says of the network."""
    rope = {"rope_theta": config.rope_base, "rope_type": "default"}
    return {
        **{theirs: getattr(config, ours) for ours, (theirs, _) in KEYS.items()},
        **{key: FIXED[key][0] for key in ("hidden_act", "attention_bias", "mlp_bias")},
        "head_dim": config.head_dim,
        "rope_parameters": rope,
        "rope_theta": config.rope_base,
    }


LAYER = {  # theirs: (ours, the config key of each axis)
    "input_layernorm": ("attention_norm", "hidden_size"),
    "self_attn.q_proj": ("attention.query", "num_attention_heads hidden_size"),
    "self_attn.k_proj": ("attention.key", "num_key_value_heads hidden_size"),
    "self_attn.v_proj": ("attention.value", "num_key_value_heads hidden_size"),
    "self_attn.o_proj": ("attention.output", "hidden_size num_attention_heads"),
    "post_attention_layernorm": ("mlp_norm", "hidden_size"),
    "mlp.gate_proj": ("mlp.gate", "intermediate_size hidden_size"),
    "mlp.up_proj": ("mlp.up", "intermediate_size hidden_size"),
    "mlp.down_proj": ("mlp.down", "hidden_size intermediate_size"),
}


def entries(config: LlamaConfig) -> Iterator[Entry]:
    """Every tensor of the file, in the order of the network."""
    yield Entry(EMBEDDING, ("embedding.weight",), ("vocab_size", "hidden_size"))
    for index in range(config.depth):
        for theirs, (ours, keys) in LAYER.items():
            yield Entry(
                f"model.layers.{index}.{theirs}.weight",
                (f"blocks.{index}.{ours}.weight",),
                tuple(keys.split()),
            )
    yield Entry("model.norm.weight", ("norm.weight",), ("hidden_size",))
    if not config.tied:
        yield Entry(HEAD, ("head.weight",), ("vocab_size", "hidden_size"))
