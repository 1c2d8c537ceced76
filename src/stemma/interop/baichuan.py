"""Baichuan as its makers publish it: `BaichuanForCausalLM`, with code of its own in the folder.

That code is never run: `REPLACED_CODE` lists what the network of ours computes in its place, and a
folder that asks for other code is refused. Query, key and value are one matrix, `W_pack`, in this
order. Two facts stand in that code alone, and are told from the config by what only one kind has:
the 7B configs name `max_position_embeddings` and rotate, the 13B configs do not and have linear
biases; Baichuan 2 has `z_loss_weight` or its own vocabulary of 125696, and a normalised head. What
we write says both in words as well (`position_embedding`, `norm_head`), which then count.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from stemma.interop.tables import REQUIRED, Entry, Keys, pick
from stemma.models.baichuan import BaichuanConfig, build

__all__ = ["build"]

MODEL_TYPE = "baichuan"
ARCHITECTURE = "BaichuanForCausalLM"
ARCHITECTURES = (ARCHITECTURE, "BaiChuanForCausalLM")  # the first 7B spells it so
REPLACED_CODE = frozenset(
    {
        "configuration_baichuan.BaiChuanConfig",
        "configuration_baichuan.BaichuanConfig",
        "modeling_baichuan.BaiChuanForCausalLM",
        "modeling_baichuan.BaichuanForCausalLM",
    }
)
CONFIG = BaichuanConfig
PREFIX = ""
HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
IGNORED = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"  # written by old versions

KEYS: Keys = {
    "width": ("hidden_size", REQUIRED),
    "depth": ("num_hidden_layers", REQUIRED),
    "num_heads": ("num_attention_heads", REQUIRED),
    "hidden": ("intermediate_size", REQUIRED),
    "vocab_size": ("vocab_size", REQUIRED),
    "context": ("model_max_length", 4096),
    "norm_eps": ("rms_norm_eps", 1e-6),
    "tied": ("tie_word_embeddings", False),
    "dropout": ("attention_dropout", 0.0),
    "initial_std": ("initializer_range", 0.02),
}
FIXED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "position_embedding": ("rope", "alibi"),
    "norm_head": (True, False),
    "rope_scaling": (None,),
}
HARMLESS = frozenset(
    # z_loss_weight weighs a further loss of training; the rest concerns chats and tokenizers
    "max_position_embeddings rope_theta z_loss_weight tokenizer_class user_token_id "
    "assistant_token_id gradient_checkpointing_enable _from_model_config".split()
)
SECOND_VOCABULARY = 125_696  # entries of Baichuan 2
LENGTH = "max_position_embeddings"


def config_from_foreign(foreign: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers for `BaichuanConfig` from a `config.json`; KeyError for a key that must be there."""
    numbers = pick(foreign, KEYS)
    usual = "alibi" if foreign.get(LENGTH) is None else "rope"
    rotates = foreign.get("position_embedding", usual) == "rope"
    second = "z_loss_weight" in foreign or numbers["vocab_size"] == SECOND_VOCABULARY
    position: dict[str, Any] = {"kind": "alibi"}
    if rotates:
        position = {"kind": "rope", "base": foreign.get("rope_theta", 10_000.0)}
        numbers["context"] = foreign.get(LENGTH) or numbers["context"]
    norm_head = foreign.get("norm_head", second)
    return {**numbers, "position": position, "norm_head": norm_head}


def config_to_foreign(config: BaichuanConfig) -> dict[str, Any]:
    """What `config.json` says of the network."""
    position = config.position
    found = {
        **{theirs: getattr(config, ours) for ours, (theirs, _) in KEYS.items()},
        "hidden_act": "silu",
        "norm_head": config.norm_head,
        "position_embedding": position.kind,
    }
    if position.kind == "rope":
        found |= {LENGTH: config.context, "rope_theta": position.base}
    if config.norm_head:
        found["z_loss_weight"] = 0
    return found


FUSED = ("attention.query", "attention.key", "attention.value")
LAYER = {  # theirs: (ours, the config key of each axis)
    "input_layernorm": (("attention_norm",), "hidden_size"),
    "self_attn.W_pack": (FUSED, "hidden_size hidden_size"),
    "self_attn.o_proj": (("attention.output",), "hidden_size hidden_size"),
    "post_attention_layernorm": (("mlp_norm",), "hidden_size"),
    "mlp.gate_proj": (("mlp.gate",), "intermediate_size hidden_size"),
    "mlp.up_proj": (("mlp.up",), "intermediate_size hidden_size"),
    "mlp.down_proj": (("mlp.down",), "hidden_size intermediate_size"),
}


def entries(config: BaichuanConfig) -> Iterator[Entry]:
    """Every tensor of the file, in the order of the network."""
    yield Entry(EMBEDDING, ("embedding.weight",), ("vocab_size", "hidden_size"))
    for index in range(config.depth):
        for theirs, (ours, keys) in LAYER.items():
            yield Entry(
                f"model.layers.{index}.{theirs}.weight",
                tuple(f"blocks.{index}.{part}.weight" for part in ours),
                tuple(keys.split()),
            )
    yield Entry("model.norm.weight", ("norm.weight",), ("hidden_size",))
    if not config.tied:
        yield Entry(HEAD, ("head.weight",), ("vocab_size", "hidden_size"))
