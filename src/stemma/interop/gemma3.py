"""Gemma 3's language model as Hugging Face stores it: `Gemma3ForCausalLM`.

Norms are stored as the distance from one, as ours are. Angles are told for each of the two kinds
of blocks: in `rope_parameters` by kind, in older files as `rope_theta` and `rope_scaling` for
blocks that see all and `rope_local_base_freq` for those with a window.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from stemma.interop.layer_types import FULL, WINDOW, read_windowed, write_windowed
from stemma.interop.llama_layout import ATTENTION, EMBEDDING, HEAD, IGNORED, MLP, entries_of
from stemma.interop.rope import read_scaling, write_rope
from stemma.interop.tables import REQUIRED, Entry, Keys, pick
from stemma.models.gemma3 import Gemma3Config, build

__all__ = ["EMBEDDING", "HEAD", "IGNORED", "build"]

MODEL_TYPE = "gemma3_text"
ARCHITECTURE = "Gemma3ForCausalLM"
CONFIG = Gemma3Config
PREFIX = ""

KEYS: Keys = {
    "width": ("hidden_size", REQUIRED),
    "depth": ("num_hidden_layers", REQUIRED),
    "num_heads": ("num_attention_heads", REQUIRED),
    "num_kv_heads": ("num_key_value_heads", 4),
    "head_dim": ("head_dim", 256),
    "query_scalar": ("query_pre_attn_scalar", 256),
    "hidden": ("intermediate_size", REQUIRED),
    "vocab_size": ("vocab_size", REQUIRED),
    "context": ("max_position_embeddings", 131_072),
    "window": ("sliding_window", 4096),
    "attention_bias": ("attention_bias", False),
    "norm_eps": ("rms_norm_eps", 1e-6),
    "tied": ("tie_word_embeddings", True),
    "dropout": ("attention_dropout", 0.0),
    "initial_std": ("initializer_range", 0.02),
}
FIXED: Mapping[str, tuple[Any, ...]] = {
    "hidden_activation": ("gelu_pytorch_tanh", "gelu_new"),  # two spellings of one formula
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "use_bidirectional_attention": (False, None),
    "is_causal": (True,),
}
HARMLESS = frozenset(
    "rope_theta rope_scaling rope_parameters rope_local_base_freq layer_types "
    "sliding_window_pattern _sliding_window_pattern cache_implementation".split()
)
BASES = {FULL: ("rope_theta", 1e6), WINDOW: ("rope_local_base_freq", 1e4)}  # older key, default


def config_from_foreign(foreign: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers for `Gemma3Config` from a `config.json`.

    Raises KeyError for a key that must be there, ValueError for a setting we cannot compute.
    """
    numbers = pick(foreign, KEYS)
    every = foreign.get("sliding_window_pattern", 6)
    if not isinstance(every, int) or every < 1:
        raise ValueError(f"sliding_window_pattern is {every!r:.60}, not a number of blocks")
    depth = numbers["depth"]
    windowed = read_windowed(foreign, depth=depth, otherwise=lambda at: bool((at + 1) % every))
    if windowed and numbers["window"] is None:
        raise ValueError(f"sliding_window is null, but {len(windowed)} blocks are {WINDOW!r}")
    usual = windowed == tuple(at for at in range(depth) if (at + 1) % 6)
    base, scaling = _rope(foreign, FULL)
    local_base, local_scaling = _rope(foreign, WINDOW)
    return {
        **numbers,
        "window": numbers["window"] if windowed else None,
        "windowed": None if usual else windowed,
        "rope_base": base,
        "rope_scaling": scaling,
        "local_rope_base": local_base,
        "local_rope_scaling": local_scaling,
    }


def _rope(foreign: Mapping[str, Any], kind: str) -> tuple[Any, dict[str, Any]]:
    """Base and scaling of the angles of one kind of blocks."""
    places = foreign.get("rope_parameters") or {}
    if not isinstance(places, dict) or places.keys() - {FULL, WINDOW}:
        wanted = f"an object by {FULL!r} and {WINDOW!r}"
        raise ValueError(f"rope_parameters is {places!r:.60}, not {wanted}")
    rope, name = places.get(kind) or {}, f"rope_parameters.{kind}"
    if kind == FULL and foreign.get("rope_scaling"):
        rope, name = {**rope, **foreign["rope_scaling"]}, "rope_scaling"
    lengths = {"max_position_embeddings": foreign.get("max_position_embeddings", 131_072)}
    scaling = read_scaling(rope, lengths, name=name)
    if not scaling.get("whole", True):  # transformers does not read the key in these objects
        raise ValueError(f"{name}: truncate false is not supported, only true")
    old, default = BASES[kind]
    base = rope.get("rope_theta")
    return (foreign.get(old, default) if base is None else base), scaling


def expresses(config: Gemma3Config) -> bool:
    """Whether transformers has such angles: it always rounds the ends of YaRN's ramp here."""
    scalings = (config.rope_scaling, config.local_rope_scaling)
    return all(getattr(scaling, "whole", True) for scaling in scalings)


def config_to_foreign(config: Gemma3Config) -> dict[str, Any]:
    """What `config.json` says of the network."""
    windowed = tuple(at for at in range(config.depth) if config.sees(at) is not None)
    far = write_rope(config.rope_base, config.rope_scaling, dim=config.head_dim)
    near = write_rope(config.local_rope_base, config.local_rope_scaling, dim=config.head_dim)
    return {
        **{theirs: getattr(config, ours) for ours, (theirs, _) in KEYS.items()},
        "sliding_window": config.window or config.context,  # wanted even where no block has one
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": write_windowed(windowed, config.depth),
        **far,
        "rope_parameters": {FULL: far["rope_parameters"], WINDOW: near["rope_parameters"]},
        "rope_local_base_freq": near["rope_theta"],
    }


LAYER = {  # theirs: (ours, the config key of each axis)
    "input_layernorm": ("attention_norm", "hidden_size"),
    **ATTENTION,
    "self_attn.q_norm": ("attention.query_norm", "head_dim"),
    "self_attn.k_norm": ("attention.key_norm", "head_dim"),
    "post_attention_layernorm": ("attention_post_norm", "hidden_size"),
    "pre_feedforward_layernorm": ("mlp_norm", "hidden_size"),
    **MLP,
    "post_feedforward_layernorm": ("mlp_post_norm", "hidden_size"),
}


def entries(config: Gemma3Config) -> Iterator[Entry]:
    """Every tensor of the file, in the order of the network."""
    biased = ATTENTION if config.attention_bias else {}
    return entries_of(config, LAYER, biased=biased.__contains__)
