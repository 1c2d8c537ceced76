"""ChatGLM2's line as Hugging Face stores it: `GlmForCausalLM`.

Gate and up of the MLP are one matrix, in this order; the rest has Llama's names. What turns of a
head is said as a share, `partial_rotary_factor`. The layout of the first folders, with code of
their own, is in `chatglm.py`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from stemma.interop.llama_layout import ATTENTION, EMBEDDING, HEAD, IGNORED, entries_of
from stemma.interop.rope import read_rope, write_rope
from stemma.interop.tables import REQUIRED, Entry, Keys, pick
from stemma.models.chatglm2 import ChatGLM2Config, build

__all__ = ["EMBEDDING", "HEAD", "IGNORED", "build"]

MODEL_TYPE = "glm"
ARCHITECTURE = "GlmForCausalLM"
CONFIG = ChatGLM2Config
PREFIX = ""

KEYS: Keys = {
    "width": ("hidden_size", REQUIRED),
    "depth": ("num_hidden_layers", REQUIRED),
    "num_heads": ("num_attention_heads", REQUIRED),
    "num_kv_heads": ("num_key_value_heads", 2),
    "head_dim": ("head_dim", 128),
    "hidden": ("intermediate_size", REQUIRED),
    "vocab_size": ("vocab_size", REQUIRED),
    "context": ("max_position_embeddings", 131_072),
    "qkv_bias": ("attention_bias", True),
    "norm_eps": ("rms_norm_eps", 1.5625e-7),
    "tied": ("tie_word_embeddings", False),
    "dropout": ("attention_dropout", 0.0),
    "initial_std": ("initializer_range", 0.02),
}
FIXED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "is_causal": (True,),
}
HARMLESS = frozenset(
    "rope_theta rope_scaling rope_parameters original_max_position_embeddings "
    "partial_rotary_factor".split()
)


def config_from_foreign(foreign: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers for `ChatGLM2Config` from a `config.json`.

    Raises KeyError for a key that must be there, ValueError for a setting we cannot compute.
    """
    numbers = pick(foreign, KEYS)
    if numbers["num_kv_heads"] is None:
        numbers["num_kv_heads"] = numbers["num_heads"]
    width, heads = numbers["width"], numbers["num_heads"]
    if numbers["head_dim"] is None and isinstance(width, int) and isinstance(heads, int):
        numbers["head_dim"] = width // max(1, heads)
    share, head_dim = _share(foreign), numbers["head_dim"]
    if isinstance(head_dim, int):
        numbers["rotary_dim"] = int(head_dim * share)
    return {**numbers, **read_rope(foreign, partial=True)}


def _share(foreign: Mapping[str, Any]) -> float:
    """The share of a head's features that turn; half where nothing is said."""
    said = [
        place["partial_rotary_factor"]
        for place in (foreign, foreign.get("rope_parameters"), foreign.get("rope_scaling"))
        if isinstance(place, Mapping) and place.get("partial_rotary_factor") is not None
    ]
    share = said[-1] if said else 0.5
    if any(other != share for other in said):
        raise ValueError(f"partial_rotary_factor is given twice, as {said[0]} and as {share}")
    if not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise ValueError(f"partial_rotary_factor is {share!r:.60}, not above 0 and at most 1")
    return share


def config_to_foreign(config: ChatGLM2Config) -> dict[str, Any]:
    """What `config.json` says of the network."""
    share = config.rotary_dim / config.head_dim
    if int(config.head_dim * share) != config.rotary_dim:  # rounding took one off
        share = (config.rotary_dim + 0.5) / config.head_dim
    rope = write_rope(
        config.rope_base,
        config.rope_scaling,
        dim=config.rotary_dim,
        partial_rotary_factor=share,
    )
    return {
        **{theirs: getattr(config, ours) for ours, (theirs, _) in KEYS.items()},
        "hidden_act": "silu",
        "partial_rotary_factor": share,
        **rope,
    }


LAYER = {  # theirs: (ours, the config key of each axis)
    "input_layernorm": ("attention_norm", "hidden_size"),
    **ATTENTION,
    "post_attention_layernorm": ("mlp_norm", "hidden_size"),
    "mlp.gate_up_proj": ("mlp.gate mlp.up", "intermediate_size hidden_size"),
    "mlp.down_proj": ("mlp.down", "hidden_size intermediate_size"),
}


def entries(config: ChatGLM2Config) -> Iterator[Entry]:
    """Every tensor of the file, in the order of the network."""
    biased = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj") if config.qkv_bias else ()
    return entries_of(config, LAYER, biased=biased.__contains__)
