"""T5 as Hugging Face stores it: `T5ForConditionalGeneration`.

The table of distances lies in the first block of each half. Whether the head scales is one key in
transformers 5, `scale_decoder_outputs`; before that, a head was scaled where it was tied. Old files
hold the embedding under up to four names.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from stemma.interop.activations import read_activation, write_activation
from stemma.interop.aliases import first_names
from stemma.interop.tables import REQUIRED, Entry, Keys, pick
from stemma.models.t5 import T5Config, build

__all__ = ["build"]

log = logging.getLogger(__name__)

MODEL_TYPE = "t5"
ARCHITECTURE = "T5ForConditionalGeneration"
CONFIG = T5Config
PREFIX = ""
HEAD = "lm_head.weight"
EMBEDDING = "shared.weight"
# a table that the first files had for cross attention and that no version reads
IGNORED = r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"

KEYS: Keys = {
    "width": ("d_model", REQUIRED),
    "depth": ("num_decoder_layers", None),
    "encoder_depth": ("num_layers", REQUIRED),
    "num_heads": ("num_heads", REQUIRED),
    "head_dim": ("d_kv", 64),
    "hidden": ("d_ff", REQUIRED),
    "vocab_size": ("vocab_size", REQUIRED),
    "context": ("n_positions", 512),
    "num_buckets": ("relative_attention_num_buckets", 32),
    "farthest": ("relative_attention_max_distance", 128),
    "activation": ("feed_forward_proj", "relu"),
    "norm_eps": ("layer_norm_epsilon", 1e-6),
    "tied": ("tie_word_embeddings", True),
    "scaled_head": ("scale_decoder_outputs", None),
    "dropout": ("dropout_rate", 0.1),
    "initial_std": ("initializer_range", 0.02),  # no key of T5's: kept for ourselves
}
FIXED: Mapping[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (True,),
    "is_decoder": (False,),
}
HARMLESS = frozenset(
    "initializer_factor classifier_dropout task_specific_params output_past decoder_start_token_id "
    "dense_act_fn is_gated_act hidden_size num_attention_heads num_hidden_layers".split()
)
ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
}


def config_from_foreign(foreign: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers for `T5Config` from a `config.json`.

    Raises KeyError for a key that must be there, ValueError for a setting we cannot compute.
    """
    foreign = first_names(foreign, ALIASES)
    numbers = pick(foreign, KEYS)
    if numbers["depth"] is None:
        numbers["depth"] = numbers["encoder_depth"]
    if numbers["scaled_head"] is None:
        numbers["scaled_head"] = numbers["tied"]
    return {**numbers, **_mixer(foreign, str(numbers["activation"]))}


def _mixer(foreign: Mapping[str, Any], word: str) -> dict[str, Any]:
    """Function and gate of the MLP: `relu`, `gated-gelu`, …; both are said again, sometimes."""
    gate, _, name = word.rpartition("-")
    if gate not in ("", "gated"):
        raise ValueError(f"feed_forward_proj is {word!r}, not a function's name after 'gated-'")
    name = "gelu_new" if word == "gated-gelu" else name  # what T5 1.1 was trained with
    again = foreign.get("dense_act_fn", name), foreign.get("is_gated_act", gate == "gated")
    if again != (name, gate == "gated"):
        found = f"dense_act_fn {again[0]!r} and is_gated_act {again[1]!r}"
        raise ValueError(f"feed_forward_proj is {word!r}, which does not go with {found}")
    return {"activation": read_activation("feed_forward_proj", name), "gated": gate == "gated"}


def fit(config: T5Config, names: frozenset[str]) -> T5Config:
    """transformers 5 calls every head tied, and keeps one that is not in the file beside."""
    own = HEAD in names and not config.scaled_head
    return config.model_copy(update={"tied": config.tied and not own})


def copies(config: T5Config) -> list[tuple[str, str | None]]:
    """Names under which old files say the embedding again."""
    halves = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    return [(half, EMBEDDING) for half in halves]


def expresses(config: T5Config) -> bool:
    """Whether transformers has such a network: none has a head of its own that scales."""
    return config.tied or not config.scaled_head


def config_to_foreign(config: T5Config) -> dict[str, Any]:
    """What `config.json` says of the network."""
    name = write_activation(config.activation)
    if config.gated:
        name = "gated-gelu" if config.activation == "gelu_tanh" else f"gated-{name}"
    return {
        **{theirs: getattr(config, ours) for ours, (theirs, _) in KEYS.items()},
        "feed_forward_proj": name,
        "is_encoder_decoder": True,
    }


ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "output"}
MLP = {"DenseReluDense.wi": "up", "DenseReluDense.wo": "down"}
GATED = {"DenseReluDense.wi_0": "gate", "DenseReluDense.wi_1": "up", "DenseReluDense.wo": "down"}


def entries(config: T5Config) -> Iterator[Entry]:
    """Every tensor of the file, in the order of the network."""
    yield Entry(EMBEDDING, ("embedding.weight",), ("vocab_size", "d_model"))
    for side, depth in (("encoder", config.encoder_depth), ("decoder", config.depth)):
        table = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        keys = ("relative_attention_num_buckets", "num_heads")
        yield Entry(table, (f"{side}.relative.weight",), keys)
        for index in range(depth):
            yield from _block(side, index, GATED if config.gated else MLP)
        yield Entry(f"{side}.final_layer_norm.weight", (f"{side}.norm.weight",), ("d_model",))
    if not config.tied:
        yield Entry(HEAD, ("head.weight",), ("vocab_size", "d_model"))


def _block(side: str, index: int, mixer: Mapping[str, str]) -> Iterator[Entry]:
    """The tensors of one block: self attention, in a decoder cross attention, the MLP."""
    theirs, ours = f"{side}.block.{index}.layer", f"{side}.blocks.{index}"
    readers = {"SelfAttention": "attention"}
    if side == "decoder":
        readers["EncDecAttention"] = "cross_attention"
    for place, (reader, own) in enumerate(readers.items()):
        for name, part in ATTENTION.items():
            keys = ("d_model", "num_heads") if name == "o" else ("num_heads", "d_model")
            tensor, weight = f"{theirs}.{place}.{reader}.{name}.weight", f"{ours}.{own}.{part}"
            yield Entry(tensor, (f"{weight}.weight",), keys)
        norm = f"{theirs}.{place}.layer_norm.weight"
        yield Entry(norm, (f"{ours}.{own}_norm.weight",), ("d_model",))
    place = len(readers)
    for name, part in mixer.items():
        keys = ("d_model", "d_ff") if part == "down" else ("d_ff", "d_model")
        yield Entry(f"{theirs}.{place}.{name}.weight", (f"{ours}.mlp.{part}.weight",), keys)
    yield Entry(f"{theirs}.{place}.layer_norm.weight", (f"{ours}.mlp_norm.weight",), ("d_model",))
