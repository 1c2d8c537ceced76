"""BLOOM as Hugging Face stores it: `BloomForCausalLM`.

Query, key and value are one matrix, head by head. The published files leave out the prefix
`transformer.`, and several config keys have two names.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from stemma.interop.aliases import first_names
from stemma.interop.tables import REQUIRED, Entry, Keys, pick
from stemma.models.bloom import BloomConfig, build

__all__ = ["build"]

log = logging.getLogger(__name__)

MODEL_TYPE = "bloom"
ARCHITECTURE = "BloomForCausalLM"
CONFIG = BloomConfig
PREFIX = "transformer."
HEAD = "lm_head.weight"
EMBEDDING = "transformer.word_embeddings.weight"
IGNORED = "(?!)"  # nothing

KEYS: Keys = {
    "width": ("hidden_size", REQUIRED),
    "depth": ("n_layer", REQUIRED),
    "num_heads": ("n_head", REQUIRED),
    "vocab_size": ("vocab_size", REQUIRED),
    "context": ("seq_length", 2048),
    "norm_eps": ("layer_norm_epsilon", 1e-5),
    "tied": ("tie_word_embeddings", True),
    "dropout": ("hidden_dropout", 0.0),
    "initial_std": ("initializer_range", 0.02),
}
ALIASES = {
    "n_embed": "hidden_size",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
}
FIXED: Mapping[str, tuple[Any, ...]] = {"apply_residual_connection_post_layernorm": (False,)}
HARMLESS = frozenset(
    # the last eight were switches of the training code; pretraining_tp alone changes nothing, and
    # with slow_but_exact it is read below
    "n_embed num_hidden_layers num_attention_heads attention_dropout pretraining_tp slow_but_exact "
    "unk_token_id n_inner offset_alibi attention_softmax_in_fp32 masked_softmax_fusion "
    "bias_dropout_fusion skip_bias_add skip_bias_add_qkv".split()
)


def config_from_foreign(foreign: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers for `BloomConfig` from a `config.json`.

    Our one dropout is the file's `hidden_dropout`; another `attention_dropout` changes training
    alone, and is logged. Raises KeyError for a key that must be there, ValueError for two names of
    one number that disagree, and for sums in slices, from which transformers leaves two biases out.
    """
    slices = foreign.get("pretraining_tp")
    if foreign.get("slow_but_exact") and slices not in (None, 0, 1):
        what = f"slow_but_exact is true and pretraining_tp is {slices!r:.20}"
        raise ValueError(f"{what}: the two drop the biases of two layers, which is not supported")
    numbers = pick(first_names(foreign, ALIASES), KEYS)
    if foreign.get("attention_dropout", 0.0) != numbers["dropout"]:
        log.warning("the one dropout used in training is hidden_dropout (%s)", numbers["dropout"])
    return numbers


def config_to_foreign(config: BloomConfig) -> dict[str, Any]:
    """What `config.json` says of the network."""
    return {
        **{theirs: getattr(config, ours) for ours, (theirs, _) in KEYS.items()},
        "apply_residual_connection_post_layernorm": False,
        "attention_dropout": config.dropout,
    }


FUSED = ("attention.query", "attention.key", "attention.value")
LAYER = {  # theirs: (ours, whether it is a matrix); the MLP's inner width is four hidden_size
    "input_layernorm": (("attention_norm",), False),
    "self_attention.query_key_value": (FUSED, True),
    "self_attention.dense": (("attention.output",), True),
    "post_attention_layernorm": (("mlp_norm",), False),
    "mlp.dense_h_to_4h": (("mlp.up",), True),
    "mlp.dense_4h_to_h": (("mlp.down",), True),
}


def entries(config: BloomConfig) -> Iterator[Entry]:
    """Every tensor of the file, in the order of the network."""
    width = ("hidden_size",)
    yield Entry(EMBEDDING, ("embedding.weight",), ("vocab_size", *width))
    for part in ("weight", "bias"):
        theirs = f"transformer.word_embeddings_layernorm.{part}"
        yield Entry(theirs, (f"embedding_norm.{part}",), width)
    for index in range(config.depth):
        for name, (ours, matrix) in LAYER.items():
            theirs = f"transformer.h.{index}.{name}"
            heads = config.num_heads if len(ours) > 1 else 1
            for part, keys in (("weight", width * 2 if matrix else width), ("bias", width)):
                names = tuple(f"blocks.{index}.{own}.{part}" for own in ours)
                yield Entry(f"{theirs}.{part}", names, keys, heads=heads)
    for part in ("weight", "bias"):
        yield Entry(f"transformer.ln_f.{part}", (f"norm.{part}",), width)
    if not config.tied:
        yield Entry(HEAD, ("head.weight",), ("vocab_size", *width))
