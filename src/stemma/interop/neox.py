"""GPT-NeoX and Pythia as Hugging Face stores them: `GPTNeoXForCausalLM`.

Query, key and value are one matrix, head by head. The share of a head that rotates and the base of
the angles are written twice: as `rotary_pct` and `rotary_emb_base` for transformers 4, and inside
`rope_parameters` for transformers 5. Old files carry the causal mask and the angles as tensors.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from stemma.interop.activations import read_activation, write_activation
from stemma.interop.rope import PLACES, read_rope, write_rope
from stemma.interop.tables import REQUIRED, Entry, Keys, pick
from stemma.models.neox import NeoXConfig, build

__all__ = ["build"]

log = logging.getLogger(__name__)

MODEL_TYPE = "gpt_neox"
ARCHITECTURE = "GPTNeoXForCausalLM"
CONFIG = NeoXConfig
PREFIX = ""
HEAD = "embed_out.weight"
EMBEDDING = "gpt_neox.embed_in.weight"
IGNORED = r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)"

KEYS: Keys = {
    "width": ("hidden_size", REQUIRED),
    "depth": ("num_hidden_layers", REQUIRED),
    "num_heads": ("num_attention_heads", REQUIRED),
    "hidden": ("intermediate_size", REQUIRED),
    "vocab_size": ("vocab_size", REQUIRED),
    "context": ("max_position_embeddings", 2048),
    "parallel": ("use_parallel_residual", True),
    "attention_bias": ("attention_bias", True),
    "activation": ("hidden_act", "gelu"),
    "norm_eps": ("layer_norm_eps", 1e-5),
    "tied": ("tie_word_embeddings", False),
    "dropout": ("hidden_dropout", 0.0),
    "initial_std": ("initializer_range", 0.02),
}
FIXED: Mapping[str, tuple[Any, ...]] = {}
HARMLESS = frozenset(
    # is_decoder is read by no part of this class
    "attention_dropout classifier_dropout is_decoder rope_parameters rope_scaling rope_theta "
    "rotary_emb_base rotary_pct original_max_position_embeddings".split()
)


def config_from_foreign(foreign: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers for `NeoXConfig` from a `config.json`.

    Our one dropout is the file's `hidden_dropout`; another `attention_dropout` changes training
    alone, and is logged. Raises KeyError for a key that must be there, ValueError for a setting
    we cannot compute.
    """
    numbers = pick(foreign, KEYS)
    if foreign.get("attention_dropout", 0.0) != numbers["dropout"]:
        log.warning("the one dropout used in training is hidden_dropout (%s)", numbers["dropout"])
    numbers["activation"] = read_activation("hidden_act", numbers["activation"])
    return {**numbers, "rotary_fraction": _fraction(foreign), **_angles(foreign)}


def _angles(foreign: Mapping[str, Any]) -> dict[str, Any]:
    """Base and scaling; `rotary_emb_base` counts where no other place names the base."""
    return read_rope(foreign, base=foreign.get("rotary_emb_base", 10_000.0), partial=True)


def _fraction(foreign: Mapping[str, Any]) -> Any:
    """The share of a head that rotates; what is said inside `rope_parameters` goes first."""
    places = [rope for place in PLACES if isinstance(rope := foreign.get(place), dict)]
    inside = [rope["partial_rotary_factor"] for rope in places if "partial_rotary_factor" in rope]
    return inside[0] if inside else foreign.get("rotary_pct", 0.25)


def config_to_foreign(config: NeoXConfig) -> dict[str, Any]:
    """What `config.json` says of the network."""
    share = config.rotary_fraction
    rope = write_rope(
        config.rope_base, config.rope_scaling, dim=config.rotary_dim, partial_rotary_factor=share
    )
    return {
        **{theirs: getattr(config, ours) for ours, (theirs, _) in KEYS.items()},
        "hidden_act": write_activation(config.activation),
        "attention_dropout": config.dropout,
        **rope,
        "rotary_emb_base": rope["rope_theta"],
        "rotary_pct": share,
    }


FUSED = ("attention.query", "attention.key", "attention.value")
LAYER = {  # theirs: (ours, the config keys of the weight's axes; the first is the bias's too)
    "input_layernorm": (("attention_norm",), "hidden_size"),
    "attention.query_key_value": (FUSED, "hidden_size hidden_size"),
    "attention.dense": (("attention.output",), "hidden_size hidden_size"),
    "post_attention_layernorm": (("mlp_norm",), "hidden_size"),
    "mlp.dense_h_to_4h": (("mlp.up",), "intermediate_size hidden_size"),
    "mlp.dense_4h_to_h": (("mlp.down",), "hidden_size intermediate_size"),
}


def entries(config: NeoXConfig) -> Iterator[Entry]:
    """Every tensor of the file, in the order of the network."""
    yield Entry(EMBEDDING, ("embedding.weight",), ("vocab_size", "hidden_size"))
    for index in range(config.depth):
        for name, (ours, words) in LAYER.items():
            keys, theirs = tuple(words.split()), f"gpt_neox.layers.{index}.{name}"
            heads = config.num_heads if len(ours) > 1 else 1
            for part in ("weight", "bias"):
                names = tuple(f"blocks.{index}.{own}.{part}" for own in ours)
                if part == "weight" or config.attention_bias or not name.startswith("attention"):
                    axes = keys if part == "weight" else keys[:1]
                    yield Entry(f"{theirs}.{part}", names, axes, heads=heads)
    yield Entry("gpt_neox.final_layer_norm.weight", ("norm.weight",), ("hidden_size",))
    yield Entry("gpt_neox.final_layer_norm.bias", ("norm.bias",), ("hidden_size",))
    if not config.tied:
        yield Entry(HEAD, ("head.weight",), ("vocab_size", "hidden_size"))
