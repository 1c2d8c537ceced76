"""What the metadata of every architecture of llama.cpp has in common: numbers, and what is refused.

A key stands below the architecture's name ("llama.block_count"). What would change an equation is
refused by its value, what is unknown is logged, and a lying number names its key.
"""

import logging
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from stemma.core.config import complaint
from stemma.core.errors import ModelError
from stemma.interop.aliases import in_words_of_file
from stemma.interop.gguf_header import Header
from stemma.interop.json_file import DAMAGED

log = logging.getLogger(__name__)

Keys = Mapping[str, tuple[str, Any]]  # ours: (key below the architecture's name, its default)
Config = TypeVar("Config", bound=BaseModel)
REQUIRED = object()
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
WIDTHS = ("rope.dimension_count", "attention.key_length", "attention.value_length")  # of one head

# what would change an equation, with the values that do not
FIXED: Mapping[str, tuple[Any, ...]] = {
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
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (1.0,),
    "residual_scale": (1.0,),
    "embedding_scale": (1.0,),
}


def read_numbers(
    header: Header, architecture: str, keys: Keys, fixed: Mapping[str, tuple[Any, ...]]
) -> dict[str, Any]:
    """Numbers by our names, rows of the embedding and whether the head is tied among them.

    Raises ModelError that names the key for one that is missing, no number, or not supported.
    """
    for key, allowed in fixed.items():
        value = header.one(f"{architecture}.{key}")
        if value is not None and value not in allowed:
            what = f"{value!r:.60} is not supported"
            what += f", only {allowed[0]!r}" if allowed else ""
            raise header.fault(f"{architecture}.{key}", what, "use another model")
    numbers = {ours: _number(header, f"{architecture}.{key}", d) for ours, (key, d) in keys.items()}
    if numbers["num_kv_heads"] is None:
        numbers["num_kv_heads"] = numbers["num_heads"]
    tied = HEAD not in header.tensors
    return {**numbers, "vocab_size": _rows(header, architecture), "tied": tied}


def _number(header: Header, key: str, default: Any) -> Any:
    value = header.one(key, default)
    if value is REQUIRED:
        raise header.fault(key, "the key is missing")
    if isinstance(value, float) and not isfinite(value):
        raise header.fault(key, f"{value} is no number to compute with")
    return value


def _rows(header: Header, architecture: str) -> int:
    """The rows of the embedding, which the metadata may only repeat."""
    embedding = header.tensors.get(EMBEDDING)
    if embedding is None:
        raise header.fault(EMBEDDING, "the tensor is missing")
    rows, key = embedding.shape[0], f"{architecture}.vocab_size"
    said = header.one(key, rows)
    if said != rows:
        raise header.fault(key, f"{said!r:.60}, but {EMBEDDING} has {rows} rows")
    return rows


def configured(
    header: Header,
    architecture: str,
    keys: Keys,
    kind: type[Config],
    numbers: Mapping[str, Any],
) -> Config:
    """The config of these numbers; ModelError, in the words of the file, where they do not fit."""
    try:
        return kind(**numbers)
    except ValidationError as error:
        ours, what, _ = complaint(error, kind, numbers)
        names = {name: theirs for name, (theirs, _) in keys.items()}
        place = f"{header.path}: {architecture}.{names[ours]}" if ours in names else header.path
        raise ModelError(in_words_of_file(what, names), place=place, fix=DAMAGED) from error


def require_widths(header: Header, architecture: str, head_dim: int) -> None:
    """Every width of a head that the metadata tells must be the one that there is."""
    for name in WIDTHS:
        value = header.one(f"{architecture}.{name}", head_dim)
        if value != head_dim:
            what = f"{value!r:.60}, wanted the width of a head, {head_dim}"
            raise header.fault(f"{architecture}.{name}", what, "use another model")


def log_unknown(header: Header, architecture: str, known: Iterable[str]) -> None:
    """Name the keys of the architecture that are not read here."""
    start = f"{architecture}."
    found = {key.removeprefix(start) for key in header.values if key.startswith(start)}
    if unknown := sorted(found - {*known, *WIDTHS, "vocab_size"}):
        log.warning("GGUF keys without effect here: %s", ", ".join(unknown[:10]))
