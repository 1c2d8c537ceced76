"""Qwen as it was published, for code that lies with the model and is never run.

Query, key and value are one matrix, in this order. Of the MLP's two inner matrices `w2` goes
through SiLU, and `intermediate_size` counts both. transformers has no such class: what is written
is the published form again.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from stemma.interop.tables import REQUIRED, Entry, Keys, pick
from stemma.models.qwen import QwenConfig, build

__all__ = ["build"]

log = logging.getLogger(__name__)

MODEL_TYPE = "qwen"
ARCHITECTURE = "QWenLMHeadModel"
REPLACED_CODE = ("configuration_qwen.QWenConfig", "modeling_qwen.QWenLMHeadModel")
CONFIG = QwenConfig
PREFIX = "transformer."
HEAD = "lm_head.weight"
EMBEDDING = "transformer.wte.weight"
IGNORED = r"transformer\.(rotary_emb\.inv_freq|h\.\d+\.attn\.(masked_bias|rotary_emb\.inv_freq))"

KEYS: Keys = {
    "width": ("hidden_size", REQUIRED),
    "depth": ("num_hidden_layers", REQUIRED),
    "num_heads": ("num_attention_heads", REQUIRED),
    "hidden": ("intermediate_size", REQUIRED),
    "vocab_size": ("vocab_size", REQUIRED),
    "context": ("seq_length", REQUIRED),
    "rope_base": ("rotary_emb_base", 10_000.0),
    "norm_eps": ("layer_norm_epsilon", 1e-6),
    "tied": ("tie_word_embeddings", False),
    "dropout": ("emb_dropout_prob", 0.0),
    "initial_std": ("initializer_range", 0.02),
}
FIXED: Mapping[str, tuple[Any, ...]] = {
    "no_bias": (True,),
    "rotary_pct": (1.0,),
    "scale_attn_weights": (True,),
    "use_cache_quantization": (False,),
}
HARMLESS = frozenset(
    # precision, kernels, and the size of the mask that the published code makes
    "bf16 fp16 fp32 use_flash_attn use_cache_kernel softmax_in_fp32 max_position_embeddings "
    "use_dynamic_ntk use_logn_attn kv_channels attn_dropout_prob onnx_safe tokenizer_class "
    "tokenizer_type padded_vocab_size".split()
)


def config_from_foreign(foreign: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers for `QwenConfig` from a `config.json`.

    Raises KeyError for a key that must be there, ValueError for a setting we cannot compute.
    """
    numbers = pick(foreign, KEYS)
    if isinstance(numbers["hidden"], int):
        numbers["hidden"] //= 2
    width, heads, channels = numbers["width"], numbers["num_heads"], foreign.get("kv_channels", 128)
    if isinstance(heads, int) and channels * heads != width:
        what = f"kv_channels ({channels}) times num_attention_heads ({heads})"
        raise ValueError(f"{what} is not hidden_size ({width})")
    if foreign.get("use_logn_attn", True):
        said = "use_logn_attn: scores of texts beyond %s tokens are not sharpened here"
        log.warning(said, numbers["context"])
    steps = foreign.get("use_dynamic_ntk", True)
    scaling = {"kind": "doubling", "context": numbers["context"]} if steps else {"kind": "none"}
    return {**numbers, "rope_scaling": scaling}


def config_to_foreign(config: QwenConfig) -> dict[str, Any]:
    """What `config.json` says of the network."""
    return {
        **{theirs: getattr(config, ours) for ours, (theirs, _) in KEYS.items()},
        **{key: allowed[0] for key, allowed in FIXED.items()},
        "intermediate_size": 2 * config.hidden,
        "kv_channels": config.head_dim,
        "max_position_embeddings": config.context,
        "attn_dropout_prob": config.dropout,
        "use_dynamic_ntk": config.rope_scaling.kind == "doubling",
        "use_logn_attn": False,
    }


def expresses(config: QwenConfig) -> bool:
    """Whether the steps of the angles count from the trained context, as the form has it."""
    steps = config.rope_scaling
    return steps.kind == "none" or steps.context == config.context


FUSED = ("attention.query", "attention.key", "attention.value")
LAYER = {  # theirs: (ours, the config key of each axis)
    "ln_1": (("attention_norm",), "hidden_size"),
    "attn.c_attn": (FUSED, "hidden_size hidden_size"),
    "attn.c_proj": (("attention.output",), "hidden_size hidden_size"),
    "ln_2": (("mlp_norm",), "hidden_size"),
    "mlp.w1": (("mlp.up",), "intermediate_size hidden_size"),
    "mlp.w2": (("mlp.gate",), "intermediate_size hidden_size"),
    "mlp.c_proj": (("mlp.down",), "hidden_size intermediate_size"),
}


def entries(config: QwenConfig) -> Iterator[Entry]:
    """Every tensor of the file, in the order of the network."""
    yield Entry(EMBEDDING, ("embedding.weight",), ("vocab_size", "hidden_size"))
    for index in range(config.depth):
        for name, (parts, words) in LAYER.items():
            theirs, keys = f"transformer.h.{index}.{name}", tuple(words.split())
            ours = tuple(f"blocks.{index}.{part}" for part in parts)
            yield Entry(f"{theirs}.weight", tuple(f"{part}.weight" for part in ours), keys)
            if parts == FUSED:
                yield Entry(f"{theirs}.bias", tuple(f"{part}.bias" for part in ours), keys[:1])
    yield Entry("transformer.ln_f.weight", ("norm.weight",), ("hidden_size",))
    if not config.tied:
        yield Entry(HEAD, ("head.weight",), ("vocab_size", "hidden_size"))
