"""From a folder's tensor files to the parameters of one of our models, every tensor accounted for.

A checkpoint that lacks a tensor, has one too many, has one of another shape, or holds a number
that is none, is an error that names it. What comes back is our own memory: the files may change
or vanish afterwards.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from os.path import commonprefix
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stemma.core.errors import ModelError
from stemma.interop.json_file import DAMAGED, read_object
from stemma.interop.tables import Entry, Shape
from stemma.interop.tensors import PICKLE_SUFFIXES, bad_values, read_tensors, refuse_pickle
from stemma.nn.meta import shapes_only

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHOWN = 5  # names of tensors in one message, at most
ROOM = 140  # characters for them, so that the line is never cut


def weight_files(folder: Path) -> dict[Path, set[str] | None]:
    """The tensor files of a folder: one, or the shards of its index with the names of each.

    Raises ModelError where there are none, where a shard is missing or lies elsewhere, and for
    pickle files, which are never loaded.
    """
    if (folder / SINGLE).exists():
        return {folder / SINGLE: None}
    if (folder / INDEX).exists():
        return _shards(folder)
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PICKLE_SUFFIXES:
            refuse_pickle(path)
    raise ModelError(f"holds no {SINGLE} and no {INDEX}", place=folder, fix=DAMAGED)


def _shards(folder: Path) -> dict[Path, set[str] | None]:
    index = folder / INDEX
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        place = f"{index}: weight_map"
        raise ModelError("wanted names of files by tensor", place=place, fix=DAMAGED)
    names: dict[str, set[str]] = {}
    for name, shard in places.items():
        names.setdefault(shard, set()).add(name)
    return {_shard(folder, shard, index): names[shard] for shard in sorted(names)}


def map_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder, from one file or from the shards that its index names."""
    tensors: dict[str, Tensor] = {}
    for path, wanted in weight_files(folder).items():
        found = read_tensors(path)
        if wanted is not None and found.keys() != wanted:
            name = sorted(found.keys() ^ wanted)[0]
            where = f"in {INDEX} but not here" if name in wanted else f"here but not in {INDEX}"
            raise ModelError(f"the tensor {name} is {where}", place=path, fix=DAMAGED)
        tensors |= found
    return tensors


def _shard(folder: Path, shard: str, index: Path) -> Path:
    """The path of a shard, which must be a plain file name of this folder."""
    plain = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors", shard)
    if not plain:
        what = f"the shard {shard!r} is not the name of a safetensors file in this folder"
        raise ModelError(what, place=index, fix=DAMAGED)
    path = folder / shard
    if not path.is_file():
        raise ModelError(f"the shard {shard} is missing", place=index, fix=DAMAGED)
    return path


def take(
    tensors: Mapping[str, Tensor],
    *,
    table: Any,
    config: Any,
    dtype: torch.dtype,
    place: Path,
    named: str,
) -> dict[str, Tensor]:
    """The parameters of ours, as fresh memory in `dtype`; every foreign tensor must be used.

    `named` is the architecture that the folder names.
    """
    _check_length(tensors, table, config, place)
    shapes = expected_shapes(table, config, place)
    tensors = _without_copies(_named(tensors, table), table, config, place)
    tensors = _tied_head(tensors, table, config, place)
    entries = list(table.entries(config))
    _account(tensors, entries, named, place)
    state: dict[str, Tensor] = {}
    for entry in entries:
        tensor = tensors[entry.theirs]
        _check_tensor(tensor, entry, shapes, place)
        for name, part in entry.read(tensor, shapes).items():
            if name not in state:
                state[name] = torch.empty(shapes[name], dtype=dtype)
            ours = state[name] if entry.part is None else state[name][entry.part]
            if bad_values(ours.copy_(part)):
                _refuse_values(tensor, ours, f"{place}: {entry.theirs}")
    return state


def fitted(table: Any, config: Any, names: Iterable[str]) -> Any:
    """The config after the file's names had their say: some families keep parts in some files.

    A table that has no function `fit` leaves everything to `config.json`.
    """
    fit = getattr(table, "fit", None)
    return config if fit is None else fit(config, frozenset(names))


def _check_length(tensors: Mapping[str, Tensor], table: Any, config: Any, place: Path) -> None:
    """Refuse a config that lies about its length, before a network or a list as long is made."""
    depth, room = max(config.depth, getattr(config, "encoder_depth", 0)), len(tensors)
    if depth <= room and sum(1 for _ in islice(table.entries(config), 9 * room)) < 9 * room:
        return
    experts = getattr(config, "num_experts", 1)
    said = f"{depth} blocks" + (f" of {experts} experts" if experts > 1 else "")
    what = f"config.json says {said}, the files hold {room} tensors"
    raise ModelError(what, place=place, fix=DAMAGED)


def expected_shapes(table: Any, config: Any, place: object) -> dict[str, Shape]:
    """The shape of every parameter of ours, without any memory for them."""
    try:
        with shapes_only():
            model = table.build(config)
    except (RuntimeError, OverflowError) as error:
        what = f"its numbers are too large for any machine ({error})"
        raise ModelError(what, place=place, fix="correct them") from error
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _named(tensors: Mapping[str, Tensor], table: Any) -> dict[str, Tensor]:
    """Give old files their prefix and today's names, and drop what is no parameter."""
    prefixed = any(name.startswith(table.PREFIX) for name in tensors)
    names = {n: n if prefixed or n == table.HEAD else table.PREFIX + n for n in tensors}
    for old, new in getattr(table, "RENAMED", {}).items():
        names = {n: re.sub(old, new, name) for n, name in names.items()}
    ignored = re.compile(table.IGNORED)
    return {new: tensors[old] for old, new in names.items() if not ignored.fullmatch(new)}


def _without_copies(
    tensors: dict[str, Tensor], table: Any, config: Any, place: Path
) -> dict[str, Tensor]:
    """Drop what a file says twice; a copy must be equal, and stands for an original not there.

    A table says it with a function `copies`: (copy, original) names, in order, the original None
    for a tensor that no equation reads.
    """
    tensors = dict(tensors)
    for copy, original in table.copies(config) if hasattr(table, "copies") else ():
        tensor = tensors.pop(copy, None)
        if tensor is None or original is None:
            continue
        if not torch.equal(tensor, tensors.setdefault(original, tensor)):
            what = f"{copy} differs from {original}, but config.json says that they are shared"
            raise ModelError(what, place=place, fix=DAMAGED)
    return tensors


def _tied_head(
    tensors: dict[str, Tensor], table: Any, config: Any, place: Path
) -> dict[str, Tensor]:
    """The config alone decides whether the head is tied; the file must not contradict it."""
    if not table.HEAD:  # a folder of ours holds what the network has, and nothing twice
        return tensors
    head = tensors.get(table.HEAD)
    key = table.KEYS["tied"][0]
    if not config.tied:
        if head is None and table.EMBEDDING in tensors:
            what = f"{table.HEAD} is missing, but {key} is false"
            raise ModelError(what, place=place, fix=f"set {key} to true if the head is tied")
        return tensors
    embedding = tensors.get(table.EMBEDDING)
    if head is None or embedding is None:
        return tensors
    if not torch.equal(head, embedding):
        what = f"{table.HEAD} differs from {table.EMBEDDING}, but {key} is true"
        raise ModelError(what, place=place, fix=f"set {key} to false if the head is its own")
    return {name: tensor for name, tensor in tensors.items() if name != table.HEAD}


def _account(
    tensors: Mapping[str, Tensor], entries: Sequence[Entry], named: str, place: Path
) -> None:
    wanted = {entry.theirs for entry in entries}
    missing = [entry.theirs for entry in entries if entry.theirs not in tensors]
    unused = [name for name in tensors if name not in wanted]
    if missing or unused:
        room = ROOM // 2 if missing and unused else ROOM
        parts = [f"{len(missing)} tensors missing, {len(unused)} unused"]
        parts += [f"missing {listing(missing, room)}"] if missing else []
        parts += [f"unused {listing(unused, room)}"] if unused else []
        what = f"does not fit {named}: " + "; ".join(parts)
        fix = "give the checkpoint that belongs to this config.json"
        raise ModelError(what, place=place, fix=fix)


def listing(names: Sequence[str], room: int = ROOM) -> str:
    """The first few names, as many as `room` characters hold; what they share is written once.

    >>> listing(["h.0.attn.w", "h.0.attn.b"]), listing(["h.0.query.w", "h.0.key.w"])
    ('h.0.attn.{w, b}', 'h.0.{query, key}.w')
    """
    for count in range(min(len(names), SHOWN), 0, -1):
        first, more = list(names[:count]), ", …" if count < len(names) else ""
        head, tail = shared_ends(first)
        parts = ", ".join(name[len(head) : len(name) - len(tail)] for name in first) + more
        text = f"{head}{{{parts}}}{tail}" if head or tail else parts
        if len(text) <= room:
            break
    return text


def shared_ends(names: Sequence[str]) -> tuple[str, str]:
    """What several names have in common, in whole words: ["a.b.w", "a.c.w"] -> ("a.", ".w")."""
    if len(names) == 1:
        return "", ""
    words = [name.split(".") for name in names]
    least = min(map(len, words)) - 1  # one word of each name stays
    head = len(commonprefix([parts[:least] for parts in words]))
    tail = len(commonprefix([parts[head:][:0:-1] for parts in words]))
    return (
        "".join(f"{word}." for word in words[0][:head]),
        "".join(f".{word}" for word in words[0][len(words[0]) - tail :]),
    )


def _check_tensor(tensor: Tensor, entry: Entry, shapes: Mapping[str, Shape], place: Path) -> None:
    where = f"{place}: {entry.theirs}"
    if not tensor.dtype.is_floating_point or tensor.dtype.itemsize < 2:
        what = f"stored as {tensor.dtype}, wanted 16, 32 or 64 bit floating point"
        raise ModelError(what, place=where, fix="use the checkpoint that is not quantized")
    wanted, found = entry.shape(shapes), tuple(tensor.shape)
    if found == wanted:
        return
    keys = [
        key
        for key, size, other in zip(entry.keys, wanted, found, strict=False)
        if size != other and len(wanted) == len(found)
    ]
    raise ModelError(
        f"shape {list(found)}, wanted {list(wanted)}",
        place=where,
        fix=f"check {' and '.join(dict.fromkeys(keys or entry.keys))} in config.json",
    )


def _refuse_values(stored: Tensor, converted: Tensor, place: str) -> None:
    if count := bad_values(stored):
        what = f"{count} of {stored.numel()} values are NaN or infinite"
        raise ModelError(what, place=place, fix="use an earlier checkpoint")
    what = f"{bad_values(converted)} values are too large for {converted.dtype}"
    raise ModelError(what, place=place, fix="load it with dtype float32")
