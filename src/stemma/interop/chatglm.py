"""ChatGLM2 and 3 as they were published, for code that lies with the model and is never run.

Query, key and value are one matrix, in this order, and so are gate and up. The frequencies of all
but a few of these models have the plain base: `rope_ratio` multiplies the base in ChatGLM3's code
and divides the positions in ChatGLM2's, and nothing in the file says which, so another than one is
refused; Hugging Face's form of the same model (`chatglm2.py`) is not in doubt.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from stemma.interop.tables import REQUIRED, Entry, Keys, pick
from stemma.models.chatglm2 import ChatGLM2Config, build

__all__ = ["build"]

MODEL_TYPE = "chatglm"
ARCHITECTURE = "ChatGLMModel"
ARCHITECTURES = ("ChatGLMModel", "ChatGLMForConditionalGeneration")
REPLACED_CODE = (
    "configuration_chatglm.ChatGLMConfig",
    "modeling_chatglm.ChatGLMForConditionalGeneration",
    "modeling_chatglm.ChatGLMForSequenceClassification",
)
CONFIG = ChatGLM2Config
PREFIX = "transformer."
HEAD = "transformer.output_layer.weight"
EMBEDDING = "transformer.embedding.word_embeddings.weight"
IGNORED = r"transformer\.rotary_pos_emb\.inv_freq"  # a table, not a parameter

KEYS: Keys = {
    "width": ("hidden_size", REQUIRED),
    "depth": ("num_layers", REQUIRED),
    "num_heads": ("num_attention_heads", REQUIRED),
    "num_kv_heads": ("multi_query_group_num", 1),
    "head_dim": ("kv_channels", 128),
    "hidden": ("ffn_hidden_size", REQUIRED),
    "vocab_size": ("padded_vocab_size", REQUIRED),
    "context": ("seq_length", 2048),
    "qkv_bias": ("add_qkv_bias", False),
    "norm_eps": ("layernorm_epsilon", 1e-5),
    "tied": ("tie_word_embeddings", False),
    "dropout": ("hidden_dropout", 0.0),
    "initial_std": ("initializer_range", 0.02),  # no key of theirs: kept for ourselves
}
FIXED: Mapping[str, tuple[Any, ...]] = {
    "rmsnorm": (True,),
    "apply_residual_connection_post_layernorm": (False,),
    "post_layer_norm": (True,),
    "add_bias_linear": (False,),
    "original_rope": (True,),
    "interleaved_qkv": (False,),
    "rope_ratio": (1, None),
    "pre_seq_len": (None, 0),
    "prefix_projection": (False,),
    "quantization_bit": (0, None),
}
HARMLESS = frozenset(
    # the layer's scale divides the scores before and multiplies them after their sum
    "apply_query_key_layer_scaling attention_softmax_in_fp32 fp32_residual_connection "
    "bias_dropout_fusion attention_dropout classifier_dropout multi_query_attention vocab_size "
    "num_hidden_layers tokenizer_class".split()
)


def config_from_foreign(foreign: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers for `ChatGLM2Config` from a `config.json`.

    Raises KeyError for a key that must be there, ValueError for a setting we cannot compute.
    """
    numbers = pick(foreign, KEYS)
    if not foreign.get("multi_query_attention", False):  # then the parts alternate head by head
        raise ValueError("multi_query_attention is false, only true is supported")
    for key in ("num_hidden_layers", "vocab_size"):
        ours = "depth" if key == "num_hidden_layers" else "vocab_size"
        if foreign.get(key, numbers[ours]) != numbers[ours]:
            what = f"{key} is {foreign[key]!r}, but {KEYS[ours][0]} is {numbers[ours]!r}"
            raise ValueError(f"{what}; the two mean the same")
    return numbers


def config_to_foreign(config: ChatGLM2Config) -> dict[str, Any]:
    """What `config.json` says of the network, for those that the layout has words for.

    Raises ValueError for rotary positions of another kind.
    """
    plain = config.rope_base == 10_000.0 and config.rope_scaling.kind == "none"
    if not plain or 2 * config.rotary_dim != config.head_dim:
        what = f"{config.rope_base} ({config.rope_scaling.kind}), {config.rotary_dim} features"
        raise ValueError(f"this layout has no key for the rotary base {what}")
    return {
        **{theirs: getattr(config, ours) for ours, (theirs, _) in KEYS.items()},
        **{key: allowed[0] for key, allowed in FIXED.items()},
        "multi_query_attention": True,
    }


FUSED = ("attention.query", "attention.key", "attention.value")
LAYER = {  # theirs: (ours, the config key of each axis)
    "input_layernorm": (("attention_norm",), "hidden_size"),
    "self_attention.query_key_value": (FUSED, "multi_query_group_num hidden_size"),
    "self_attention.dense": (("attention.output",), "hidden_size kv_channels"),
    "post_attention_layernorm": (("mlp_norm",), "hidden_size"),
    "mlp.dense_h_to_4h": (("mlp.gate", "mlp.up"), "ffn_hidden_size hidden_size"),
    "mlp.dense_4h_to_h": (("mlp.down",), "hidden_size ffn_hidden_size"),
}


def entries(config: ChatGLM2Config) -> Iterator[Entry]:
    """Every tensor of the file, in the order of the network."""
    yield Entry(EMBEDDING, ("embedding.weight",), ("padded_vocab_size", "hidden_size"))
    for index in range(config.depth):
        for name, (parts, words) in LAYER.items():
            theirs, keys = f"transformer.encoder.layers.{index}.{name}", tuple(words.split())
            ours = tuple(f"blocks.{index}.{part}" for part in parts)
            yield Entry(f"{theirs}.weight", tuple(f"{part}.weight" for part in ours), keys)
            if config.qkv_bias and parts == FUSED:
                yield Entry(f"{theirs}.bias", tuple(f"{part}.bias" for part in ours), keys[:1])
    yield Entry("transformer.encoder.final_layernorm.weight", ("norm.weight",), ("hidden_size",))
    if not config.tied:
        yield Entry(HEAD, ("head.weight",), ("padded_vocab_size", "hidden_size"))
