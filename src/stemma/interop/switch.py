"""Switch Transformer as Hugging Face stores it: `SwitchTransformersForConditionalGeneration`.

T5's names but for the MLP, and for experts, which have tensors of their own; in ours those of a
block are one tensor. Which blocks have experts is told by a step, or by their number, from which
the step follows. An expert's capacity is an absolute number of places here; a network with a
share of the load, or with no limit, is written in our own form.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from stemma.interop.activations import read_activation, write_activation
from stemma.interop.aliases import first_names
from stemma.interop.tables import REQUIRED, Entry, Keys, pick
from stemma.models.switch import SwitchConfig, build

__all__ = ["build"]

log = logging.getLogger(__name__)

MODEL_TYPE = "switch_transformers"
ARCHITECTURE = "SwitchTransformersForConditionalGeneration"
CONFIG = SwitchConfig
PREFIX = ""
HEAD = "lm_head.weight"
EMBEDDING = "shared.weight"
SOURCE = "encoder.embed_tokens.weight"
TARGET = "decoder.embed_tokens.weight"
IGNORED = r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"

KEYS: Keys = {
    "width": ("d_model", REQUIRED),
    "depth": ("num_decoder_layers", 12),
    "encoder_depth": ("num_layers", REQUIRED),
    "sparse_step": ("decoder_sparse_step", None),
    "encoder_sparse_step": ("encoder_sparse_step", None),
    "num_experts": ("num_experts", 8),
    "expert_capacity": ("expert_capacity", 64),
    "num_heads": ("num_heads", REQUIRED),
    "head_dim": ("d_kv", 64),
    "hidden": ("d_ff", REQUIRED),
    "vocab_size": ("vocab_size", REQUIRED),
    "context": ("n_positions", 512),
    "num_buckets": ("relative_attention_num_buckets", 32),
    "farthest": ("relative_attention_max_distance", 128),
    "activation": ("dense_act_fn", "relu"),
    "norm_eps": ("layer_norm_epsilon", 1e-6),
    "tied": ("tie_word_embeddings", True),
    "dropout": ("dropout_rate", 0.1),
    "jitter": ("router_jitter_noise", 0.01),
    "balance_loss": ("router_aux_loss_coef", 0.001),
    "z_loss": ("router_z_loss_coef", 0.001),
    "initial_std": ("initializer_range", 0.02),  # no key of this class: kept for ourselves
}
FIXED: Mapping[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (True,),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "router_bias": (False,),
    "router_dtype": ("float32",),
    "router_type": ("tokens_masked",),
    "is_gated_act": (False,),
}
HARMLESS = frozenset(
    # padding never takes a place of ours, whatever router_ignore_padding_tokens says
    "router_ignore_padding_tokens num_sparse_encoder_layers num_sparse_decoder_layers "
    "add_router_probs output_router_logits initializer_factor feed_forward_proj "
    "decoder_start_token_id hidden_size num_attention_heads num_hidden_layers".split()
)
ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
}


def config_from_foreign(foreign: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers for `SwitchConfig` from a `config.json`.

    Raises KeyError for a key that must be there, ValueError for a setting we cannot compute.
    """
    foreign = first_names(foreign, ALIASES)
    numbers = pick(foreign, KEYS)
    if numbers["depth"] is None:
        numbers["depth"] = numbers["encoder_depth"]
    for side, step, depth in (
        ("encoder", "encoder_sparse_step", "encoder_depth"),
        ("decoder", "sparse_step", "depth"),
    ):
        if numbers[step] is None:
            sparse = foreign.get(f"num_sparse_{side}_layers", 3)
            # a number of 0 gives one sparse block there, the second, if there are two
            numbers[step] = numbers[depth] // sparse if sparse else numbers[depth]
    numbers["activation"] = read_activation("dense_act_fn", numbers["activation"])
    return {**numbers, "capacity_factor": None, "shared": numbers["tied"]}


def fit(config: SwitchConfig, names: frozenset[str]) -> SwitchConfig:
    """transformers 4 shared the embedding also where the head was not tied to it."""
    shared = EMBEDDING in names and not names & {SOURCE, TARGET}
    return config.model_copy(update={"shared": config.shared or shared})


def copies(config: SwitchConfig) -> list[tuple[str, str | None]]:
    """Names under which old files say the embedding again."""
    if config.shared:
        return [(SOURCE, EMBEDDING), (TARGET, EMBEDDING)]
    return [(EMBEDDING, None)]


def expresses(config: SwitchConfig) -> bool:
    """Whether transformers has such a network."""
    return config.expert_capacity is not None and config.shared == config.tied


def config_to_foreign(config: SwitchConfig) -> dict[str, Any]:
    """What `config.json` says of the network."""
    steps = {"encoder": config.encoder_sparse_step, "decoder": config.sparse_step}
    depths = {"encoder": config.encoder_depth, "decoder": config.depth}
    return {
        **{theirs: getattr(config, ours) for ours, (theirs, _) in KEYS.items()},
        **{f"num_sparse_{s}_layers": depths[s] // steps[s] if steps[s] else 0 for s in steps},
        "dense_act_fn": write_activation(config.activation),
        "router_bias": False,
        "router_dtype": "float32",
        "is_encoder_decoder": True,
    }


ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "output"}
MIXER = {"wi": ("up", ("d_ff", "d_model")), "wo": ("down", ("d_model", "d_ff"))}


def entries(config: SwitchConfig) -> Iterator[Entry]:
    """Every tensor of the file, in the order of the network."""
    keys = ("vocab_size", "d_model")
    if not config.shared:
        yield Entry(SOURCE, ("source_embedding.weight",), keys)
    yield Entry(EMBEDDING if config.shared else TARGET, ("embedding.weight",), keys)
    for side, depth, step in (
        ("encoder", config.encoder_depth, config.encoder_sparse_step),
        ("decoder", config.depth, config.sparse_step),
    ):
        table = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        axes = ("relative_attention_num_buckets", "num_heads")
        yield Entry(table, (f"{side}.relative.weight",), axes)
        for index in range(depth):
            sparse = step == 1 or (step > 0 and index % step == 1)
            yield from _block(side, index, config.num_experts if sparse else 0)
        yield Entry(f"{side}.final_layer_norm.weight", (f"{side}.norm.weight",), ("d_model",))
    if not config.tied:
        yield Entry(HEAD, ("head.weight",), keys)


def _block(side: str, index: int, num_experts: int) -> Iterator[Entry]:
    """The tensors of one block: self attention, in a decoder cross attention, MLP or experts."""
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
    place, mixer = len(readers), "moe" if num_experts else "mlp"
    yield from _experts(f"{theirs}.{place}.mlp", f"{ours}.moe", num_experts)
    if not num_experts:
        for name, (part, keys) in MIXER.items():
            yield Entry(f"{theirs}.{place}.mlp.{name}.weight", (f"{ours}.mlp.{part}.weight",), keys)
    norm = f"{theirs}.{place}.layer_norm.weight"
    yield Entry(norm, (f"{ours}.{mixer}_norm.weight",), ("d_model",))


def _experts(theirs: str, ours: str, num_experts: int) -> Iterator[Entry]:
    """The router, and every expert as one element of ours."""
    if num_experts:
        keys = ("num_experts", "d_model")
        yield Entry(f"{theirs}.router.classifier.weight", (f"{ours}.router.weight",), keys)
    for expert in range(num_experts):
        for name, (part, keys) in MIXER.items():
            tensor = f"{theirs}.experts.expert_{expert}.{name}.weight"
            yield Entry(tensor, (f"{ours}.experts.{part}",), keys, part=expert)
