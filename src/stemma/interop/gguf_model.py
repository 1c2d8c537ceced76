"""What a GGUF file holds, in our terms: config, weights, tokenizer, generation settings.

A room per architecture of llama.cpp knows its keys and names (`gguf_llama`, `gguf_gemma3`); here is
what holds for all of them. All that the header can tell is checked before the first weight is read.
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from stemma.core.errors import ModelError
from stemma.data.tokenizer import Tokenizer
from stemma.interop import gguf_gemma3, gguf_llama
from stemma.interop.gguf_header import Header, read_header
from stemma.interop.gguf_tensors import read_values, value_type
from stemma.interop.gguf_tokenizer import end_ids, read_tokenizer
from stemma.interop.json_file import DAMAGED
from stemma.interop.tables import tables
from stemma.interop.weights import ROOM, expected_shapes, listing

ARCHITECTURES = {room.ARCHITECTURE: room for room in (gguf_llama, gguf_gemma3)}
TOKENS = "tokenizer.ggml.tokens"
SAMPLING = {  # key below "general.sampling.": name in generation_config.json
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


@dataclass(frozen=True)
class PackedModel:
    """A file whose header was found sound; `source` is the room of its architecture."""

    header: Header
    source: Any
    config: Any
    tokenizer: Tokenizer | None

    @property
    def unpacked_size(self) -> int:
        """Bytes of the decoded weights."""
        tensors = self.header.tensors.values()
        return sum(prod(t.shape) * value_type(t.kind).itemsize for t in tensors)


def open_model(path: Path) -> PackedModel:
    """Read all of a file but its weights.

    Raises ModelError that names the file, and the key or tensor, for anything that does not fit.
    """
    header = read_header(path)
    source = _source(header)
    config = source.read_config(header)
    _account(header, source, config)
    tokenizer = read_tokenizer(header)
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        what = f"{tokenizer.vocab_size} tokens, but the embedding has {config.vocab_size} rows"
        raise ModelError(what, place=f"{header.path}: {TOKENS}", fix=DAMAGED)
    return PackedModel(header, source, config, tokenizer)


def _source(header: Header) -> Any:
    """The room that knows the file's architecture."""
    kind = header.one("general.type", "model")
    if kind != "model":
        what, fix = f"holds {kind!r:.60}, not a model", "give the file of the model itself"
        raise ModelError(what, place=f"{header.path}: general.type", fix=fix)
    if (parts := header.one("split.count", 1)) not in (0, 1):
        fix = "join them first: llama-gguf-split --merge FIRST OUT"
        raise ModelError(f"one of {parts} parts of a model", place=header.path, fix=fix)
    name = header.one("general.architecture")
    if name not in ARCHITECTURES:
        what = "the key is missing" if name is None else f"unknown architecture {name!r:.60}"
        place = f"{header.path}: general.architecture"
        raise ModelError(what, place=place, fix=f"known: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def _account(header: Header, source: Any, config: Any) -> None:
    """Every tensor must be known and of the right shape, before memory is given for one."""
    if config.depth > len(header.tensors):  # before a list as long as a lying key is made
        what = f"block_count is {config.depth}, but there are {len(header.tensors)} tensors"
        raise ModelError(what, place=header.path, fix=DAMAGED)
    shapes = expected_shapes(tables()[config.family], config, header.path)
    entries = {entry.theirs: entry for entry in source.entries(config)}
    missing = [name for name in entries if name not in header.tensors]
    unused = [n for n in header.tensors if n not in entries and not source.IGNORED.fullmatch(n)]
    if missing or unused:
        room = ROOM // 2 if missing and unused else ROOM
        parts = [f"{len(missing)} tensors missing, {len(unused)} unused"]
        parts += [f"missing {listing(missing, room)}"] if missing else []
        parts += [f"unused {listing(unused, room)}"] if unused else []
        what = f"does not fit the architecture {source.ARCHITECTURE}: " + "; ".join(parts)
        raise ModelError(what, place=header.path, fix="use another file of the model")
    for name, entry in entries.items():
        wanted, found = entry.shape(shapes), header.tensors[name].shape
        if wanted != found:
            what = f"shape {list(found)}, wanted {list(wanted)}"
            keys = " and ".join(dict.fromkeys(entry.keys))
            raise ModelError(what, place=f"{header.path}: {name}", fix=f"check {keys}")


def read_state(model: PackedModel) -> dict[str, Tensor]:
    """Every parameter by our name, decoded and in our form."""
    state: dict[str, Tensor] = {}
    with open(model.header.path, "rb") as file:
        for entry in model.source.entries(model.config):
            place = f"{model.header.path}: {entry.theirs}"
            values = read_values(file, model.header.tensors[entry.theirs], place=place)
            state[entry.ours[0]] = model.source.as_ours(model.config, entry.theirs, values)
    return state


def generation(model: PackedModel) -> dict[str, Any]:
    """What `generation_config.json` will say: how to sample, and every token that ends a turn."""
    header = model.header
    said = {name: header.one(f"general.sampling.{key}") for key, name in SAMPLING.items()}
    found = {name: value for name, value in said.items() if value is not None}
    if found:
        found["do_sample"] = found.get("temperature") != 0
    if not found.get("do_sample", True):
        del found["temperature"]
    ends = [] if model.tokenizer is None else end_ids(header, model.tokenizer)
    if len(ends) > 1:
        found["eos_token_id"] = ends
    return found


def describe_file(path: Path) -> dict[str, Any]:
    """Facts about a file from its header."""
    model = open_model(path)
    header, tokenizer = model.header, model.tokenizer
    shapes = expected_shapes(tables()[model.config.family], model.config, path)
    return {
        "file": str(path),
        "family": model.config.family,
        "parameters": sum(map(prod, shapes.values())),
        "bytes": path.stat().st_size,
        "dtype": ", ".join(sorted({tensor.kind for tensor in header.tensors.values()})),
        "context": model.config.context,
        "vocabulary": model.config.vocab_size,
        "tokenizer": tokenizer is not None,
        "template": tokenizer is not None and tokenizer.template is not None,
        "licence": str(header.one("general.license", "not stated")),
    }
