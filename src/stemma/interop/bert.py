"""BERT as Hugging Face stores it: `BertForPreTraining` and the classes with fewer heads.

Which heads there are is said by the architecture and by the tensors themselves: published folders
often hold more than the class that they name. `BertModel` leaves out the prefix of every name. Old
files call the numbers of a norm gamma and beta.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from stemma.interop.activations import read_activation, write_activation
from stemma.interop.tables import REQUIRED, Entry, Keys, pick
from stemma.models.bert import BertConfig, build

__all__ = ["build"]

log = logging.getLogger(__name__)

MODEL_TYPE = "bert"
ARCHITECTURE = "BertForPreTraining"
HEADS: dict[str, dict[str, bool]] = {  # what each class cannot do without
    "BertForPreTraining": {"masked_head": True, "pooler": True, "pair_head": True},
    "BertForMaskedLM": {"masked_head": True},
    "BertForNextSentencePrediction": {"pooler": True, "pair_head": True},
    "BertForSequenceClassification": {"pooler": True},
    "BertModel": {},
}
ARCHITECTURES = tuple(HEADS)
CONFIG = BertConfig
PREFIX = "bert."
HEAD = "cls.predictions.decoder.weight"
EMBEDDING = "bert.embeddings.word_embeddings.weight"
IGNORED = r"bert\.embeddings\.position_ids"
RENAMED = {r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias"}

KEYS: Keys = {
    "width": ("hidden_size", REQUIRED),
    "depth": ("num_hidden_layers", REQUIRED),
    "num_heads": ("num_attention_heads", REQUIRED),
    "hidden": ("intermediate_size", REQUIRED),
    "vocab_size": ("vocab_size", REQUIRED),
    "context": ("max_position_embeddings", 512),
    "num_segments": ("type_vocab_size", 2),
    "activation": ("hidden_act", "gelu"),
    "norm_eps": ("layer_norm_eps", 1e-12),
    "tied": ("tie_word_embeddings", True),
    "dropout": ("hidden_dropout_prob", 0.1),
    "initial_std": ("initializer_range", 0.02),
}
FIXED: Mapping[str, tuple[Any, ...]] = {
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "position_embedding_type": ("absolute",),
}
HARMLESS = frozenset(
    "attention_probs_dropout_prob classifier_dropout num_labels pooler_fc_size pooler_type "
    "pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head directionality "
    "model_max_length".split()
)


def config_from_foreign(foreign: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers for `BertConfig` from a `config.json`.

    Our one dropout is the file's `hidden_dropout_prob`; other rates change training alone, and are
    logged. Raises KeyError for a key that must be there, ValueError for what we cannot compute.
    """
    numbers = pick(foreign, KEYS)
    rates = [foreign.get("attention_probs_dropout_prob", 0.1), foreign.get("classifier_dropout")]
    if any(rate not in (None, numbers["dropout"]) for rate in rates):
        log.warning("the one dropout in training is hidden_dropout_prob (%s)", numbers["dropout"])
    numbers["activation"] = read_activation("hidden_act", numbers["activation"])
    named = (foreign.get("architectures") or [ARCHITECTURE])[0]
    labels = _labels(foreign) if named == "BertForSequenceClassification" else 0
    heads = {"masked_head": False, "pooler": False, "pair_head": False, "num_labels": labels}
    return {**numbers, **heads, **HEADS[named]}


def _labels(foreign: Mapping[str, Any]) -> Any:
    """How many labels a classifier has; two where the file does not say."""
    named = foreign.get("id2label")
    return len(named) if isinstance(named, Mapping) else foreign.get("num_labels", 2)


def fit(config: BertConfig, names: frozenset[str]) -> BertConfig:
    """Heads that lie in the file are there, whatever class it names."""
    pair = config.pair_head or "cls.seq_relationship.weight" in names
    masked = config.masked_head or "cls.predictions.transform.dense.weight" in names
    pooled = bool(names & {"bert.pooler.dense.weight", "pooler.dense.weight"})
    found = {"pair_head": pair, "masked_head": masked, "pooler": config.pooler or pooled or pair}
    return config.model_copy(update={**found, "tied": config.tied or not masked})


def copies(config: BertConfig) -> list[tuple[str, str | None]]:
    """The bias of the masked head has two names; without ties only that of its layer is read."""
    shared, own = "cls.predictions.bias", "cls.predictions.decoder.bias"
    return [(own, shared)] if config.tied else [(shared, None)]


def config_to_foreign(config: BertConfig) -> dict[str, Any]:
    """What `config.json` says of the network, the class that has its heads among it."""
    labels = range(config.num_labels or 2)
    return {
        **{theirs: getattr(config, ours) for ours, (theirs, _) in KEYS.items()},
        "architectures": [_architecture(config)],
        "hidden_act": write_activation(config.activation),
        "attention_probs_dropout_prob": config.dropout,
        "id2label": {str(label): f"LABEL_{label}" for label in labels},
        "label2id": {f"LABEL_{label}": label for label in labels},
    }


def _architecture(config: BertConfig) -> str:
    """The class that reads the most of the heads that there are."""
    if config.num_labels:
        return "BertForSequenceClassification"
    if config.masked_head:
        return "BertForPreTraining" if config.pair_head else "BertForMaskedLM"
    return "BertForNextSentencePrediction" if config.pair_head else "BertModel"


LAYER = {  # theirs: (ours, the config keys of the weight's axes; the first is the bias's too)
    "attention.self.query": ("attention.query", "hidden_size hidden_size"),
    "attention.self.key": ("attention.key", "hidden_size hidden_size"),
    "attention.self.value": ("attention.value", "hidden_size hidden_size"),
    "attention.output.dense": ("attention.output", "hidden_size hidden_size"),
    "attention.output.LayerNorm": ("attention_norm", "hidden_size"),
    "intermediate.dense": ("mlp.up", "intermediate_size hidden_size"),
    "output.dense": ("mlp.down", "hidden_size intermediate_size"),
    "output.LayerNorm": ("mlp_norm", "hidden_size"),
}
TABLES = {
    "word_embeddings": ("embedding", "vocab_size"),
    "position_embeddings": ("position", "max_position_embeddings"),
    "token_type_embeddings": ("segment", "type_vocab_size"),
}


def entries(config: BertConfig) -> Iterator[Entry]:
    """Every tensor of the file, in the order of the network."""
    for theirs, (ours, rows) in TABLES.items():
        name = f"bert.embeddings.{theirs}.weight"
        yield Entry(name, (f"{ours}.weight",), (rows, "hidden_size"))
    yield from _pair("bert.embeddings.LayerNorm", "embedding_norm", "hidden_size")
    for index in range(config.depth):
        for theirs, (ours, keys) in LAYER.items():
            yield from _pair(f"bert.encoder.layer.{index}.{theirs}", f"blocks.{index}.{ours}", keys)
    if config.pooler:
        yield from _pair("bert.pooler.dense", "pooler.dense", "hidden_size hidden_size")
    if config.masked_head:
        yield from _masked(config)
    if config.pair_head:
        yield from _pair("cls.seq_relationship", "pair_head", "architectures hidden_size")
    if config.num_labels:
        yield from _pair("classifier", "classifier", "id2label hidden_size")


def _masked(config: BertConfig) -> Iterator[Entry]:
    theirs = "cls.predictions.transform"
    yield from _pair(f"{theirs}.dense", "head.dense", "hidden_size hidden_size")
    yield from _pair(f"{theirs}.LayerNorm", "head.norm", "hidden_size")
    if config.tied:
        yield Entry("cls.predictions.bias", ("head.bias",), ("vocab_size",))
    else:
        yield from _pair("cls.predictions.decoder", "head", "vocab_size hidden_size")


def _pair(theirs: str, ours: str, keys: str) -> Iterator[Entry]:
    """A weight and its bias; the first axis of the weight is the bias's too."""
    axes = tuple(keys.split())
    yield Entry(f"{theirs}.weight", (f"{ours}.weight",), axes)
    yield Entry(f"{theirs}.bias", (f"{ours}.bias",), axes[:1])
