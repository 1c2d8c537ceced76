"""GPT-1 as Hugging Face stores it: `OpenAIGPTLMHeadModel`.

Matrices are stored as (input, output), the transpose of ours, and query, key and value are one
matrix, as in GPT-2. The config's word `gelu` means the tanh approximation here, and only here.
Old files leave out the prefix `transformer.` and carry the causal mask and the list of positions
as tensors.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from stemma.interop.tables import REQUIRED, Entry, Keys, pick
from stemma.models.gpt1 import GPT1Config, build

__all__ = ["build"]

log = logging.getLogger(__name__)

MODEL_TYPE = "openai-gpt"
ARCHITECTURE = "OpenAIGPTLMHeadModel"
CONFIG = GPT1Config
PREFIX = "transformer."
HEAD = "lm_head.weight"
EMBEDDING = "transformer.tokens_embed.weight"
IGNORED = r"transformer\.(h\.\d+\.attn\.bias|position_ids)"  # the mask, and 0, 1, 2, …

KEYS: Keys = {
    "width": ("n_embd", REQUIRED),
    "depth": ("n_layer", REQUIRED),
    "num_heads": ("n_head", REQUIRED),
    "vocab_size": ("vocab_size", REQUIRED),
    "context": ("n_positions", 512),
    "activation": ("afn", "gelu"),
    "norm_eps": ("layer_norm_epsilon", 1e-5),
    "tied": ("tie_word_embeddings", True),
    "dropout": ("resid_pdrop", 0.1),
    "initial_std": ("initializer_range", 0.02),
}
FIXED: Mapping[str, tuple[Any, ...]] = {}
HARMLESS = frozenset(
    # n_special and predict_special_tokens speak of files older than the library itself
    "attn_pdrop embd_pdrop n_ctx n_special predict_special_tokens task_specific_params "
    "summary_type summary_use_proj summary_activation summary_proj_to_labels "
    "summary_first_dropout".split()
)
ACTIVATIONS = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}


def config_from_foreign(foreign: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers for `GPT1Config` from a `config.json`.

    Our one dropout is the file's `resid_pdrop`; other rates elsewhere change training alone, and
    are logged. Raises KeyError for a key that must be there, ValueError for an unknown activation.
    """
    numbers = pick(foreign, KEYS)
    others = [foreign.get(key, 0.1) for key in ("embd_pdrop", "attn_pdrop")]
    if any(rate != numbers["dropout"] for rate in others):
        log.warning("the one dropout used in training is resid_pdrop (%s)", numbers["dropout"])
    word = numbers["activation"]
    if not isinstance(word, str) or word not in ACTIVATIONS:
        raise ValueError(f"afn is {word!r}, supported are {', '.join(ACTIVATIONS)}")
    return {**numbers, "activation": ACTIVATIONS[word]}


def config_to_foreign(config: GPT1Config) -> dict[str, Any]:
    """What `config.json` says of the network."""
    words = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return {
        **{theirs: getattr(config, ours) for ours, (theirs, _) in KEYS.items()},
        "afn": words[config.activation],
        "attn_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
    }


FUSED = ("attention.query", "attention.key", "attention.value")
LAYER = {  # theirs: (ours, whether it is a matrix); the MLP's inner width is four n_embd
    "attn.c_attn": (FUSED, True),
    "attn.c_proj": (("attention.output",), True),
    "ln_1": (("attention_norm",), False),
    "mlp.c_fc": (("mlp.up",), True),
    "mlp.c_proj": (("mlp.down",), True),
    "ln_2": (("mlp_norm",), False),
}


def entries(config: GPT1Config) -> Iterator[Entry]:
    """Every tensor of the file, in the order of the network."""
    yield Entry(EMBEDDING, ("embedding.weight",), ("vocab_size", "n_embd"))
    positions = "transformer.positions_embed.weight"
    yield Entry(positions, ("position.weight",), ("n_positions", "n_embd"))
    for index in range(config.depth):
        for name, (ours, matrix) in LAYER.items():
            theirs = f"transformer.h.{index}.{name}"
            weights = tuple(f"blocks.{index}.{part}.weight" for part in ours)
            biases = tuple(f"blocks.{index}.{part}.bias" for part in ours)
            keys = ("n_embd", "n_embd") if matrix else ("n_embd",)
            yield Entry(f"{theirs}.weight", weights, keys, transposed=matrix)
            yield Entry(f"{theirs}.bias", biases, ("n_embd",))
    if not config.tied:
        yield Entry(HEAD, ("head.weight",), ("vocab_size", "n_embd"))
