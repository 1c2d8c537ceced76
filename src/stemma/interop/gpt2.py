"""GPT-2 as Hugging Face stores it: `GPT2LMHeadModel`.

Two things differ from a list of linear layers. Matrices are stored as (input, output), the
transpose of ours, and query, key and value are one matrix, in this order. Files written by old
versions leave out the prefix `transformer.` and carry the causal mask as tensors.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from stemma.interop.activations import read_activation, write_activation
from stemma.interop.tables import REQUIRED, Entry, Keys, pick
from stemma.models.gpt2 import GPT2Config, build

__all__ = ["build"]

log = logging.getLogger(__name__)

MODEL_TYPE = "gpt2"
ARCHITECTURE = "GPT2LMHeadModel"
CONFIG = GPT2Config
PREFIX = "transformer."
HEAD = "lm_head.weight"
EMBEDDING = "transformer.wte.weight"
IGNORED = r"transformer\.h\.\d+\.attn\.(bias|masked_bias)"  # the mask, not a parameter

KEYS: Keys = {
    "width": ("n_embd", REQUIRED),
    "depth": ("n_layer", REQUIRED),
    "num_heads": ("n_head", REQUIRED),
    "hidden": ("n_inner", None),
    "vocab_size": ("vocab_size", REQUIRED),
    "context": ("n_positions", REQUIRED),
    "activation": ("activation_function", "gelu_new"),
    "norm_eps": ("layer_norm_epsilon", 1e-5),
    "tied": ("tie_word_embeddings", True),
    "dropout": ("resid_pdrop", 0.1),
    "initial_std": ("initializer_range", 0.02),
}
FIXED: Mapping[str, tuple[Any, ...]] = {
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
}
HARMLESS = frozenset(
    # reorder_and_upcast_attn changes the order of two products, not the equation
    "attn_pdrop embd_pdrop reorder_and_upcast_attn n_ctx task_specific_params summary_type "
    "summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout".split()
)


def config_from_foreign(foreign: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers for `GPT2Config` from a `config.json`.

    Our one dropout is the file's `resid_pdrop`; other rates elsewhere change training alone, and
    are logged. Raises KeyError for a key that must be there, ValueError for an unknown activation.
    """
    numbers = pick(foreign, KEYS)
    others = [foreign.get(key, 0.1) for key in ("embd_pdrop", "attn_pdrop")]
    if any(rate != numbers["dropout"] for rate in others):
        log.warning("the one dropout used in training is resid_pdrop (%s)", numbers["dropout"])
    if numbers["hidden"] is None:
        numbers["hidden"] = 4 * numbers["width"]
    word = numbers["activation"]
    return {**numbers, "activation": read_activation("activation_function", word)}


def config_to_foreign(config: GPT2Config) -> dict[str, Any]:
    """What `config.json` says of the network."""
    return {
        **{theirs: getattr(config, ours) for ours, (theirs, _) in KEYS.items()},
        **{key: values[0] for key, values in FIXED.items() if key != "is_encoder_decoder"},
        "activation_function": write_activation(config.activation),
        "attn_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
    }


FUSED = ("attention.query", "attention.key", "attention.value")
LAYER = {  # theirs: (ours, the config keys of the weight's axes; the last is the bias's too)
    "ln_1": (("attention_norm",), "n_embd"),
    "attn.c_attn": (FUSED, "n_embd n_embd"),
    "attn.c_proj": (("attention.output",), "n_embd n_embd"),
    "ln_2": (("mlp_norm",), "n_embd"),
    "mlp.c_fc": (("mlp.up",), "n_embd n_inner"),
    "mlp.c_proj": (("mlp.down",), "n_inner n_embd"),
}


def entries(config: GPT2Config) -> Iterator[Entry]:
    """Every tensor of the file, in the order of the network."""
    yield Entry(EMBEDDING, ("embedding.weight",), ("vocab_size", "n_embd"))
    yield Entry("transformer.wpe.weight", ("position.weight",), ("n_positions", "n_embd"))
    for index in range(config.depth):
        for name, (ours, words) in LAYER.items():
            keys, theirs = tuple(words.split()), f"transformer.h.{index}.{name}"
            weights = tuple(f"blocks.{index}.{part}.weight" for part in ours)
            biases = tuple(f"blocks.{index}.{part}.bias" for part in ours)
            yield Entry(f"{theirs}.weight", weights, keys, transposed=len(keys) == 2)
            yield Entry(f"{theirs}.bias", biases, keys[-1:])
    yield Entry("transformer.ln_f.weight", ("norm.weight",), ("n_embd",))
    yield Entry("transformer.ln_f.bias", ("norm.bias",), ("n_embd",))
    if not config.tied:
        yield Entry(HEAD, ("head.weight",), ("vocab_size", "n_embd"))
