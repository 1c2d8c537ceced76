"""The Transformer of 2017 as Hugging Face stores it: `MarianMTModel`.

Marian puts all sines before the cosines and its norms after the sublayers; a network that differs
is written in our own form. Old files carry the table of sines, and one embedding under up to
four names. The bias of the head is a buffer there, stored as one row.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from stemma.interop.activations import read_activation, write_activation
from stemma.interop.aliases import first_names
from stemma.interop.tables import REQUIRED, Entry, Keys, pick
from stemma.models.transformer import TransformerConfig, build

__all__ = ["build"]

log = logging.getLogger(__name__)

MODEL_TYPE = "marian"
ARCHITECTURE = "MarianMTModel"
CONFIG = TransformerConfig
PREFIX = ""
HEAD = "lm_head.weight"
EMBEDDING = "model.shared.weight"
SOURCE = "model.encoder.embed_tokens.weight"
TARGET = "model.decoder.embed_tokens.weight"
BIAS = "final_logits_bias"
IGNORED = r"model\.(en|de)coder\.embed_positions\.weight"  # the sines, computed here
NORM_EPS = 1e-5  # no key of Marian's: torch's default

KEYS: Keys = {
    "width": ("d_model", REQUIRED),
    "depth": ("decoder_layers", REQUIRED),
    "num_heads": ("decoder_attention_heads", REQUIRED),
    "hidden": ("decoder_ffn_dim", REQUIRED),
    "encoder_depth": ("encoder_layers", REQUIRED),
    "encoder_num_heads": ("encoder_attention_heads", REQUIRED),
    "encoder_hidden": ("encoder_ffn_dim", REQUIRED),
    "vocab_size": ("vocab_size", REQUIRED),
    "context": ("max_position_embeddings", 1024),
    "activation": ("activation_function", "gelu"),
    "scaled": ("scale_embedding", False),
    "tied": ("tie_word_embeddings", True),
    "dropout": ("dropout", 0.1),
    "initial_std": ("init_std", 0.02),
}
FIXED: Mapping[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (True,),
    "is_decoder": (False,),
    "normalize_before": (False,),
    "normalize_embedding": (False,),
    "add_final_layer_norm": (False,),
    "static_position_embeddings": (True,),
}
HARMLESS = frozenset(
    "decoder_vocab_size share_encoder_decoder_embeddings attention_dropout activation_dropout "
    "encoder_layerdrop decoder_layerdrop classifier_dropout classif_dropout add_bias_logits "
    "extra_pos_embeddings decoder_start_token_id forced_eos_token_id bad_words_ids num_beams "
    "max_length num_labels force_bos_token_to_be_generated hidden_size num_attention_heads "
    "num_hidden_layers".split()
)
ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "encoder_attention_heads",
    "num_hidden_layers": "encoder_layers",
}


def config_from_foreign(foreign: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers for `TransformerConfig` from a `config.json`.

    Our one dropout is the file's `dropout`; other rates change training alone, and are logged.
    Raises KeyError for a key that must be there, ValueError for a setting we cannot compute.
    """
    foreign = first_names(foreign, ALIASES)
    numbers = pick(foreign, KEYS)
    for key in (
        "attention_dropout",
        "activation_dropout",
        "encoder_layerdrop",
        "decoder_layerdrop",
    ):
        if foreign.get(key):
            log.warning("%s is not used: what training drops is dropout", key)
    numbers["activation"] = read_activation("activation_function", numbers["activation"])
    numbers |= {"interleaved": False, "norm_eps": NORM_EPS, "head_bias": True}
    return {**numbers, **_vocabularies(foreign, numbers["vocab_size"], tied=numbers["tied"])}


def _vocabularies(foreign: Mapping[str, Any], source: Any, *, tied: bool) -> dict[str, Any]:
    """Rows of the two embeddings; without ties transformers 5 shares none of them."""
    share = foreign.get("share_encoder_decoder_embeddings", True)
    target = foreign.get("decoder_vocab_size") or source
    if share and target != source:
        what = f"decoder_vocab_size is {target}, but vocab_size is {source}"
        raise ValueError(f"{what} and share_encoder_decoder_embeddings is true")
    return {"vocab_size": target, "source_vocab_size": None if share and tied else source}


def fit(config: TransformerConfig, names: frozenset[str]) -> TransformerConfig:
    """Without the bias in the file there is none; transformers 4 shared embeddings also untied."""
    changed: dict[str, Any] = {"head_bias": BIAS in names}
    if EMBEDDING in names and not names & {SOURCE, TARGET}:
        changed["source_vocab_size"] = None
    return config.model_copy(update=changed)


def copies(config: TransformerConfig) -> list[tuple[str, str | None]]:
    """Names under which old files say the embedding again."""
    if config.source_vocab_size is None:
        return [(SOURCE, EMBEDDING), (TARGET, EMBEDDING)]
    return [(EMBEDDING, None), *([(HEAD, TARGET)] if config.tied else [])]


def expresses(config: TransformerConfig) -> bool:
    """Whether Marian has such a network."""
    shares = config.source_vocab_size is None
    same = config.norms == "post" and config.norm_eps == NORM_EPS and not config.interleaved
    return same and (config.tied or not shares)


def config_to_foreign(config: TransformerConfig) -> dict[str, Any]:
    """What `config.json` says of the network."""
    shares = config.source_vocab_size is None
    return {
        **{theirs: getattr(config, ours) for ours, (theirs, _) in KEYS.items()},
        "activation_function": write_activation(config.activation),
        "vocab_size": config.vocab_size if shares else config.source_vocab_size,
        "decoder_vocab_size": config.vocab_size,
        "share_encoder_decoder_embeddings": shares,
        "attention_dropout": config.dropout,
        "is_encoder_decoder": True,
    }


ATTENTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}


def _layer(side: str, *, decodes: bool) -> dict[str, tuple[str, str]]:
    """Of one block, theirs: (ours, the config keys of the weight's axes; the first the bias's)."""
    found = {"self_attn_layer_norm": ("attention_norm", "d_model")}
    found |= {f"self_attn.{k}": (f"attention.{v}", "d_model d_model") for k, v in ATTENTION.items()}
    if decodes:
        found["encoder_attn_layer_norm"] = ("cross_attention_norm", "d_model")
        for theirs, ours in ATTENTION.items():
            found[f"encoder_attn.{theirs}"] = (f"cross_attention.{ours}", "d_model d_model")
    found["fc1"] = ("mlp.up", f"{side}_ffn_dim d_model")
    found["fc2"] = ("mlp.down", f"d_model {side}_ffn_dim")
    return found | {"final_layer_norm": ("mlp_norm", "d_model")}


def entries(config: TransformerConfig) -> Iterator[Entry]:
    """Every tensor of the file, in the order of the network."""
    target = EMBEDDING
    if config.source_vocab_size is not None:
        target = TARGET
        yield Entry(SOURCE, ("source_embedding.weight",), ("vocab_size", "d_model"))
    yield Entry(target, ("embedding.weight",), ("decoder_vocab_size", "d_model"))
    for side, depth in (("encoder", config.encoder_depth), ("decoder", config.depth)):
        layer = _layer(side, decodes=side == "decoder")
        for index in range(depth):
            for name, (ours, words) in layer.items():
                theirs, own = f"model.{side}.layers.{index}.{name}", f"{side}.blocks.{index}.{ours}"
                yield Entry(f"{theirs}.weight", (f"{own}.weight",), tuple(words.split()))
                yield Entry(f"{theirs}.bias", (f"{own}.bias",), tuple(words.split()[:1]))
    if not config.tied:
        yield Entry(HEAD, ("head.weight",), ("decoder_vocab_size", "d_model"))
    if config.head_bias:
        yield Entry(BIAS, ("head.bias",), ("decoder_vocab_size",), row=True)
