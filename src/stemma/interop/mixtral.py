"""Mixtral as Hugging Face stores it: `MixtralForCausalLM`.

Every expert has tensors of its own in the file, w1 (gate), w2 (down) and w3 (up); in ours all
experts of a layer are one tensor, and so they are in the memory of transformers 5. The rest is
Llama's.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from stemma.interop.llama_layout import ATTENTION, EMBEDDING, HEAD, IGNORED, pick_heads
from stemma.interop.rope import read_rope, write_rope
from stemma.interop.tables import REQUIRED, Entry, Keys
from stemma.models.mixtral import MixtralConfig, build

__all__ = ["EMBEDDING", "HEAD", "IGNORED", "build"]

log = logging.getLogger(__name__)

MODEL_TYPE = "mixtral"
ARCHITECTURE = "MixtralForCausalLM"
CONFIG = MixtralConfig
PREFIX = ""

KEYS: Keys = {
    "width": ("hidden_size", REQUIRED),
    "depth": ("num_hidden_layers", REQUIRED),
    "num_heads": ("num_attention_heads", REQUIRED),
    "num_kv_heads": ("num_key_value_heads", 8),
    "head_dim": ("head_dim", None),
    "hidden": ("intermediate_size", REQUIRED),
    "num_experts": ("num_local_experts", 8),
    "top_k": ("num_experts_per_tok", 2),
    "vocab_size": ("vocab_size", REQUIRED),
    "context": ("max_position_embeddings", 131_072),
    "window": ("sliding_window", None),
    "norm_eps": ("rms_norm_eps", 1e-5),
    "tied": ("tie_word_embeddings", False),
    "dropout": ("attention_dropout", 0.0),
    "balance_loss": ("router_aux_loss_coef", 0.001),
    "z_loss": ("router_z_loss_coef", 0.0),  # no key of transformers' Mixtral: kept for ourselves
    "initial_std": ("initializer_range", 0.02),
}
FIXED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
}
HARMLESS = frozenset(
    "rope_theta rope_parameters rope_scaling original_max_position_embeddings "
    "output_router_logits router_jitter_noise".split()
)


def config_from_foreign(foreign: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers for `MixtralConfig` from a `config.json`.

    Raises KeyError for a key that must be there, ValueError for a setting we cannot compute.
    """
    numbers = pick_heads(foreign, KEYS)
    if foreign.get("router_jitter_noise"):
        log.warning("router_jitter_noise is not used: training scores the tokens as they are")
    return {**numbers, **read_rope(foreign, base=1e6)}


def config_to_foreign(config: MixtralConfig) -> dict[str, Any]:
    """What `config.json` says of the network."""
    return {
        **{theirs: getattr(config, ours) for ours, (theirs, _) in KEYS.items()},
        "hidden_act": "silu",
        **write_rope(config.rope_base, config.rope_scaling, dim=config.head_dim),
    }


LAYER = {  # theirs: (ours, the config key of each axis)
    "input_layernorm": ("attention_norm", "hidden_size"),
    **ATTENTION,
    "post_attention_layernorm": ("moe_norm", "hidden_size"),
    "block_sparse_moe.gate": ("moe.router", "num_local_experts hidden_size"),
}
EXPERT = {  # the same for each expert
    "w1": ("gate", "intermediate_size hidden_size"),
    "w2": ("down", "hidden_size intermediate_size"),
    "w3": ("up", "intermediate_size hidden_size"),
}


def entries(config: MixtralConfig) -> Iterator[Entry]:
    """Every tensor of the file, in the order of the network."""
    yield Entry(EMBEDDING, ("embedding.weight",), ("vocab_size", "hidden_size"))
    for index in range(config.depth):
        theirs, ours = f"model.layers.{index}", f"blocks.{index}"
        for name, (part, keys) in LAYER.items():
            yield Entry(f"{theirs}.{name}.weight", (f"{ours}.{part}.weight",), tuple(keys.split()))
        for expert in range(config.num_experts):
            for name, (part, keys) in EXPERT.items():
                yield Entry(
                    f"{theirs}.block_sparse_moe.experts.{expert}.{name}.weight",
                    (f"{ours}.moe.experts.{part}",),
                    tuple(keys.split()),
                    part=expert,
                )
    yield Entry("model.norm.weight", ("norm.weight",), ("hidden_size",))
    if not config.tied:
        yield Entry(HEAD, ("head.weight",), ("vocab_size", "hidden_size"))
