"""GPT-Neo as Hugging Face stores it (`GPTNeoForCausalLM`), the one GPT-3 that it knows.

GPT-Neo leaves out the biases of query, key and value and the scale of the scores, and has one band
width. A network that differs from that in any point is written in our own form, because no other
library could compute it.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from operator import index
from typing import Any

from stemma.interop.activations import read_activation, write_activation
from stemma.interop.aliases import first_names
from stemma.interop.native import NativeTable
from stemma.interop.tables import REQUIRED, Entry, Keys, pick
from stemma.models.gpt3 import GPT3Config, build

__all__ = ["build"]

log = logging.getLogger(__name__)

MODEL_TYPE = "gpt_neo"
ARCHITECTURE = "GPTNeoForCausalLM"
CONFIG = GPT3Config
PREFIX = "transformer."
HEAD = "lm_head.weight"
EMBEDDING = "transformer.wte.weight"
IGNORED = r"transformer\.h\.\d+\.attn\.attention\.(bias|masked_bias)"  # the mask, not a parameter

KEYS: Keys = {
    "width": ("hidden_size", REQUIRED),
    "depth": ("num_layers", REQUIRED),
    "num_heads": ("num_heads", REQUIRED),
    "hidden": ("intermediate_size", None),
    "vocab_size": ("vocab_size", REQUIRED),
    "context": ("max_position_embeddings", 2048),
    "activation": ("activation_function", "gelu_new"),
    "norm_eps": ("layer_norm_epsilon", 1e-5),
    "tied": ("tie_word_embeddings", True),
    "dropout": ("resid_dropout", 0.0),
    "initial_std": ("initializer_range", 0.02),
}
ALIASES = {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"}
FIXED: Mapping[str, tuple[Any, ...]] = {}
HARMLESS = frozenset(
    "num_hidden_layers num_attention_heads attention_types attention_layers window_size "
    "attention_dropout embed_dropout classifier_dropout summary_type summary_use_proj "
    "summary_activation summary_proj_to_labels summary_first_dropout".split()
)
NEO = {"score_scale": 1.0, "qkv_bias": False}  # what the class has no key for
WIDE, BAND = "global", "local"
USUAL_BAND = 256  # the class's default
MOST = 10_000  # layers, more than any network has


def config_from_foreign(foreign: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers for `GPT3Config` from a `config.json`.

    Our one dropout is the file's `resid_dropout`; other rates elsewhere change training alone, and
    are logged. Raises KeyError for a key that must be there, ValueError for layers or an
    activation that nothing here computes.
    """
    foreign = first_names(foreign, ALIASES)
    numbers = pick(foreign, KEYS)
    others = [foreign.get(key, 0.0) for key in ("embed_dropout", "attention_dropout")]
    if any(rate != numbers["dropout"] for rate in others):
        log.warning("the one dropout used in training is resid_dropout (%s)", numbers["dropout"])
    if numbers["hidden"] is None:
        del numbers["hidden"]
    numbers["activation"] = read_activation("activation_function", numbers["activation"])
    kinds = _kinds(foreign, numbers["depth"])
    band = foreign.get("window_size", USUAL_BAND)
    windows = [None if kind == WIDE else band for kind in kinds]
    return {**numbers, **NEO, "windows": shortest_cycle(windows)}


def _kinds(foreign: Mapping[str, Any], depth: Any) -> list[str]:
    """The kind of every layer; ValueError where their number or the file's two lists disagree."""
    types = foreign.get("attention_types")
    if types is None:
        types = [[[WIDE, BAND], 12]]
    total = _count(types)  # before a list as long as a lying config is made
    if total != depth or total > MOST:
        limit = f", of at most {MOST}" if total > MOST else ""
        raise ValueError(f"attention_types has {total} layers{limit}, num_layers is {depth}")
    kinds = [kind for names, count in types for kind in list(names) * count]
    if strange := [kind for kind in kinds if kind not in (WIDE, BAND)]:
        what = f"attention_types has the kind {strange[0]!r}, only {WIDE!r} and {BAND!r} are known"
        raise ValueError(what)
    layers = foreign.get("attention_layers")
    if layers is not None and layers != kinds:
        raise ValueError("attention_layers and attention_types name different layers")
    return kinds


def _count(types: Any) -> int:
    """The number of layers that `attention_types` gives; ValueError where it is not of its form."""
    try:
        return sum(len(names) * index(count) for names, count in types)
    except (TypeError, ValueError) as error:
        wanted = '[[["global", "local"], 12]]'
        what = f"attention_types is {types!r:.60}, wanted such as {wanted}"
        raise ValueError(what) from error


def shortest_cycle(items: Sequence[Any]) -> list[Any]:
    """The fewest first items that give all of them when begun anew; the last turn may be cut.

    >>> shortest_cycle([1, 2, 1, 2, 1]), shortest_cycle([1, 1, 2])
    ([1, 2], [1, 1, 2])
    """
    length = next(
        length
        for length in range(1, len(items) + 1)
        if all(item == items[place % length] for place, item in enumerate(items))
    )
    return list(items[:length])


def is_neo(config: GPT3Config) -> bool:
    """Whether GPT-Neo's form can say what the network computes."""
    alike = all(getattr(config, name) == value for name, value in NEO.items())
    return alike and len(set(config.windows) - {None}) <= 1


def config_to_foreign(config: GPT3Config) -> dict[str, Any]:
    """What `config.json` says of the network."""
    if not is_neo(config):
        own = NativeTable(config.family)
        form = {"model_type": own.MODEL_TYPE, "architectures": [own.ARCHITECTURE]}
        return {**own.config_to_foreign(config), **form}
    windows = [config.windows[place % len(config.windows)] for place in range(config.depth)]
    kinds = [WIDE if window is None else BAND for window in windows]
    cycle = shortest_cycle(kinds)
    whole = config.depth % len(cycle) == 0
    types = [[cycle, config.depth // len(cycle)]] if whole else [[kinds, 1]]
    return {
        **{theirs: getattr(config, ours) for ours, (theirs, _) in KEYS.items()},
        "activation_function": write_activation(config.activation),
        "attention_types": types,
        "attention_layers": kinds,
        "window_size": next((window for window in windows if window), USUAL_BAND),
        "embed_dropout": config.dropout,
        "attention_dropout": config.dropout,
    }


LAYER = {  # theirs: (ours, the config keys of the weight's axes; the first is the bias's too)
    "ln_1": ("attention_norm", "hidden_size"),
    "attn.attention.q_proj": ("attention.query", "hidden_size hidden_size"),
    "attn.attention.k_proj": ("attention.key", "hidden_size hidden_size"),
    "attn.attention.v_proj": ("attention.value", "hidden_size hidden_size"),
    "attn.attention.out_proj": ("attention.output", "hidden_size hidden_size"),
    "ln_2": ("mlp_norm", "hidden_size"),
    "mlp.c_fc": ("mlp.up", "intermediate_size hidden_size"),
    "mlp.c_proj": ("mlp.down", "hidden_size intermediate_size"),
}
UNBIASED = ("attention.query", "attention.key", "attention.value")


def entries(config: GPT3Config) -> Iterator[Entry]:
    """Every tensor of the file, in the order of the network."""
    if not is_neo(config):
        yield from NativeTable(config.family).entries(config)
        return
    yield Entry(EMBEDDING, ("embedding.weight",), ("vocab_size", "hidden_size"))
    positions = ("max_position_embeddings", "hidden_size")
    yield Entry("transformer.wpe.weight", ("position.weight",), positions)
    for block in range(config.depth):
        for name, (part, words) in LAYER.items():
            keys, theirs, ours = tuple(words.split()), f"h.{block}.{name}", f"blocks.{block}.{part}"
            yield Entry(f"transformer.{theirs}.weight", (f"{ours}.weight",), keys)
            if part not in UNBIASED:
                yield Entry(f"transformer.{theirs}.bias", (f"{ours}.bias",), keys[:1])
    yield Entry("transformer.ln_f.weight", ("norm.weight",), ("hidden_size",))
    yield Entry("transformer.ln_f.bias", ("norm.bias",), ("hidden_size",))
    if not config.tied:
        yield Entry(HEAD, ("head.weight",), ("vocab_size", "hidden_size"))
