"""Llama as llama.cpp stores it: the metadata of its config, and the names of its tensors.

llama.cpp rotates neighbouring features, 2i with 2i + 1, where our rotary positions and Hugging
Face's pair feature i with i + D/2. Its converter therefore reorders the rows of query and key
inside each head; that is undone here, at the door, and never at run time.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from stemma.core.config import complaint
from stemma.core.errors import ModelError
from stemma.interop.gguf_header import Header
from stemma.interop.json_file import DAMAGED
from stemma.interop.tables import Entry
from stemma.models.llama import LlamaConfig

log = logging.getLogger(__name__)

ARCHITECTURE = "llama"
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
SCALING = "rope_freqs.weight"
IGNORED = re.compile(r"blk\.\d+\.attn_rot_embd\.weight")  # a table that old converters wrote
REQUIRED = object()

KEYS: Mapping[str, tuple[str, Any]] = {  # ours: (key below "llama.", its default)
    "width": ("embedding_length", REQUIRED),
    "depth": ("block_count", REQUIRED),
    "num_heads": ("attention.head_count", REQUIRED),
    "num_kv_heads": ("attention.head_count_kv", None),
    "hidden": ("feed_forward_length", REQUIRED),
    "context": ("context_length", REQUIRED),
    "norm_eps": ("attention.layer_norm_rms_epsilon", REQUIRED),
    "rope_base": ("rope.freq_base", 10_000.0),
}
# what would change an equation, with the values that do not
FIXED: Mapping[str, tuple[Any, ...]] = {
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (1.0, 0.0),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scale_linear": (1.0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "use_parallel_residual": (False,),
    "tensor_data_layout": ("Meta AI original pth",),
    "attention.causal": (True,),
    "attention.scale": (),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (1.0,),
    "residual_scale": (1.0,),
    "embedding_scale": (1.0,),
}
WIDTHS = ("rope.dimension_count", "attention.key_length", "attention.value_length")  # of one head

LAYER = {  # theirs: (ours, the metadata key of each axis)
    "attn_norm": ("attention_norm", "embedding_length"),
    "attn_q": ("attention.query", "attention.head_count embedding_length"),
    "attn_k": ("attention.key", "attention.head_count_kv embedding_length"),
    "attn_v": ("attention.value", "attention.head_count_kv embedding_length"),
    "attn_output": ("attention.output", "embedding_length attention.head_count"),
    "ffn_norm": ("mlp_norm", "embedding_length"),
    "ffn_gate": ("mlp.gate", "feed_forward_length embedding_length"),
    "ffn_up": ("mlp.up", "feed_forward_length embedding_length"),
    "ffn_down": ("mlp.down", "embedding_length feed_forward_length"),
}


def read_config(header: Header) -> LlamaConfig:
    """The numbers of the network.

    Raises ModelError that names the key or tensor for anything we cannot compute exactly.
    """
    _refuse_scaling(header)
    for key, allowed in FIXED.items():
        value = header.one(f"{ARCHITECTURE}.{key}")
        if value is not None and value not in allowed:
            what = f"{value!r:.60} is not supported"
            what += f", only {allowed[0]!r}" if allowed else ""
            raise _bad(header, key, what, "use another model")
    numbers = {ours: _number(header, *entry) for ours, entry in KEYS.items()}
    if numbers["num_kv_heads"] is None:
        numbers["num_kv_heads"] = numbers["num_heads"]
    numbers |= {"vocab_size": _rows(header), "tied": HEAD not in header.tensors}
    try:
        config = LlamaConfig(**numbers)
    except ValidationError as error:
        ours, what, _ = complaint(error)
        raise _bad(header, KEYS[ours][0] if ours in KEYS else "", what, DAMAGED) from error
    for key in WIDTHS:
        value = header.one(f"{ARCHITECTURE}.{key}", config.head_dim)
        if value != config.head_dim:
            what = f"{value!r:.60}, wanted the width of a head, {config.head_dim}"
            raise _bad(header, key, what, "use another model")
    _log_unknown(header)
    return config


def _bad(header: Header, key: str, what: str, fix: str) -> ModelError:
    place = f"{header.path}: {ARCHITECTURE}.{key}" if key else header.path
    return ModelError(what, place=place, fix=fix)


def _refuse_scaling(header: Header) -> None:
    """Long-context Llamas carry their factors as a tensor; no metadata key tells of it."""
    if SCALING in header.tensors:
        what = "scaled rotary positions are not supported"
        raise ModelError(what, place=f"{header.path}: {SCALING}", fix="use another model")


def _number(header: Header, key: str, default: Any) -> Any:
    value = header.one(f"{ARCHITECTURE}.{key}", default)
    if value is REQUIRED:
        raise _bad(header, key, "the key is missing", DAMAGED)
    if isinstance(value, float) and not isfinite(value):
        raise _bad(header, key, f"{value} is no number to compute with", DAMAGED)
    return value


def _rows(header: Header) -> int:
    """The rows of the embedding, which the metadata may only repeat."""
    embedding = header.tensors.get(EMBEDDING)
    if embedding is None:
        raise ModelError("the tensor is missing", place=f"{header.path}: {EMBEDDING}", fix=DAMAGED)
    rows = embedding.shape[0]
    said = header.one(f"{ARCHITECTURE}.vocab_size", rows)
    if said != rows:
        raise _bad(header, "vocab_size", f"{said!r:.60}, but {EMBEDDING} has {rows} rows", DAMAGED)
    return rows


def _log_unknown(header: Header) -> None:
    known = {key for key, _ in KEYS.values()} | FIXED.keys() | {*WIDTHS, "vocab_size"}
    start = f"{ARCHITECTURE}."
    found = {key.removeprefix(start) for key in header.values if key.startswith(start)}
    if unknown := sorted(found - known):
        log.warning("GGUF keys without effect here: %s", ", ".join(unknown[:10]))


def entries(config: LlamaConfig) -> Iterator[Entry]:
    """Every tensor of the file, in the order of the network."""
    yield Entry(EMBEDDING, ("embedding.weight",), ("vocab_size", "embedding_length"))
    for index in range(config.depth):
        for theirs, (ours, keys) in LAYER.items():
            name, own = f"blk.{index}.{theirs}.weight", f"blocks.{index}.{ours}.weight"
            yield Entry(name, (own,), tuple(keys.split()))
    yield Entry("output_norm.weight", ("norm.weight",), ("embedding_length",))
    if not config.tied:
        yield Entry(HEAD, ("head.weight",), ("vocab_size", "embedding_length"))


def heads(config: LlamaConfig, name: str) -> int:
    """How many heads' rows llama.cpp has reordered in a tensor of this name, 0 where none."""
    return {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}.get(name.split(".")[-2], 0)


def in_halves(rows: Tensor, num_heads: int) -> Tensor:
    """Rows (heads * D, C) from neighbouring pairs to halves: 0, 1, 2, 3 -> 0, 2, 1, 3.

    Of each head, the first of every pair come first, then the second ones.
    """
    pairs = rows.view(num_heads, -1, 2, rows.shape[-1])
    return pairs.transpose(1, 2).reshape(rows.shape)
