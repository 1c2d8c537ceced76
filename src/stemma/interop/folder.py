"""Hugging Face folders, in and out: config, weights, tokenizer, generation settings.

Only safetensors and JSON are read, never code and never a pickle. A folder is written beside its
place and renamed, so it is there whole or not at all. What is written loads in transformers'
`AutoModelForCausalLM`; what its `save_pretrained` wrote loads here.
"""

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stemma.core.errors import ModelError, UsageError
from stemma.core.files import resource_error, sync_folder, write_json, write_text
from stemma.data.tokenizer import SPECIALS, Tokenizer
from stemma.interop.foreign_config import (
    architecture_of,
    read_config,
    refuse_code,
    write_config,
)
from stemma.interop.json_file import read_object, read_words
from stemma.interop.native import read_by, written_by
from stemma.interop.tensors import read_header, write_tensors
from stemma.interop.tokenizer_json import build_tokenizer
from stemma.interop.weights import (
    SINGLE,
    expected_shapes,
    fitted,
    listing,
    map_weights,
    take,
    weight_files,
)

log = logging.getLogger(__name__)

CONFIG = "config.json"
GENERATION = "generation_config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
SPECIAL_MAP = "special_tokens_map.json"
IDS = {"bos_token_id": "bos_id", "eos_token_id": "eos_id", "pad_token_id": "pad_id"}
OURS = {CONFIG, GENERATION, TOKENIZER, TOKENIZER_CONFIG, TEMPLATE, SPECIAL_MAP}


@dataclass(frozen=True)
class ForeignModel:
    """A folder's content in our terms.

    `numbers` are the fields of the family's config; `state` has every parameter by our name, in
    memory of its own; `generation` is `generation_config.json` as it stands, and without one
    the end tokens that `config.json` names; `labels` are what a classifier's labels are called.
    """

    family: str
    numbers: dict[str, Any]
    state: dict[str, Tensor]
    tokenizer: Tokenizer | None
    generation: dict[str, Any]
    labels: tuple[str, ...] = ()


def read_folder(folder: Path, *, dtype: torch.dtype = torch.float32) -> ForeignModel:
    """Read a model folder; weights are converted to `dtype`.

    Raises ModelError that names the file, and the key or tensor, for anything that does not fit.
    """
    folder = Path(folder)
    foreign = read_object(folder / CONFIG)
    family, config = read_config(foreign, folder / CONFIG)
    tokenizer = _fitting_tokenizer(folder, config)
    weights = map_weights(folder)
    table = read_by(foreign, family)
    config = fitted(table, config, weights.keys())
    named = architecture_of(foreign, table)
    state = take(weights, table=table, config=config, dtype=dtype, place=folder, named=named)
    generation = read_generation(folder, foreign)
    if tokenizer is not None and tokenizer.eos_id is None and not generation.get("eos_token_id"):
        where = folder / TOKENIZER_CONFIG
        log.warning("%s names no eos_token: a text ends by its length alone", where)
    labels = read_labels(foreign, getattr(config, "num_labels", 0))
    return ForeignModel(config.family, config.model_dump(), state, tokenizer, generation, labels)


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a folder, None where it has no `tokenizer.json`.

    Newer folders keep the chat template in a file of its own, older ones name the special tokens
    in `special_tokens_map.json`; both are taken where `tokenizer_config.json` does not say.
    """
    path = folder / TOKENIZER
    if not path.exists():
        return None
    config: dict[str, Any] = {}
    places = dict.fromkeys(SPECIALS, folder / TOKENIZER_CONFIG)
    if (folder / TOKENIZER_CONFIG).exists():
        config = read_object(folder / TOKENIZER_CONFIG)
        refuse_code(config, folder / TOKENIZER_CONFIG)
    if (folder / SPECIAL_MAP).exists():
        words = read_object(folder / SPECIAL_MAP)
        found = {key: words[key] for key in SPECIALS if key in words and not config.get(key)}
        config |= found
        places |= dict.fromkeys(found, folder / SPECIAL_MAP)
    if (folder / TEMPLATE).exists():
        config["chat_template"] = read_words(folder / TEMPLATE)
    return build_tokenizer(path, config, places)


def _fitting_tokenizer(folder: Path, config: Any) -> Tokenizer | None:
    """The tokenizer of a folder, after its ids were found to have rows in the embedding."""
    tokenizer = read_tokenizer(folder)
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise ModelError(
            f"{tokenizer.vocab_size} token ids, but the embedding of {folder / CONFIG} "
            f"has {config.vocab_size} rows",
            place=folder / TOKENIZER,
            fix="use the tokenizer that belongs to the model",
        )
    return tokenizer


def describe(folder: Path) -> dict[str, Any]:
    """Facts about a model folder from its JSON and the headers of its tensor files."""
    folder = Path(folder)
    foreign = read_object(folder / CONFIG)
    family, config = read_config(foreign, folder / CONFIG)
    tokenizer = _fitting_tokenizer(folder, config)
    files = weight_files(folder)
    headers = {name: t for path in files for name, t in read_header(path).items()}
    stored = {str(tensor.dtype)[6:] for tensor in headers.values()}
    table = read_by(foreign, family)
    config = fitted(table, config, headers.keys())
    shapes = expected_shapes(table, config, folder)
    return {
        "folder": str(folder),
        "family": config.family,
        "parameters": sum(map(prod, shapes.values())),
        "bytes": sum(path.stat().st_size for path in files),
        "dtype": ", ".join(sorted(stored)),
        "context": config.context,
        "vocabulary": config.vocab_size,
        "tokenizer": tokenizer is not None,
        "template": tokenizer is not None and tokenizer.template is not None,
        "licence": "see LICENSE" if (folder / "LICENSE").exists() else "not stated",
    }


def read_generation(folder: Path, foreign: Mapping[str, Any]) -> dict[str, Any]:
    """`generation_config.json` as it stands; without one, the end tokens of `config.json`."""
    path = folder / GENERATION
    if path.exists():
        return read_object(path)
    named = foreign.get("eos_token_id")
    return {} if named is None else {"eos_token_id": named}


def read_labels(foreign: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """The names of a classifier's labels in their order; none where they do not all have one."""
    named = foreign.get("id2label")
    found = [named.get(str(n)) for n in range(count)] if isinstance(named, dict) else []
    return tuple(name for name in found if isinstance(name, str) and None not in found)


def written_labels(labels: Sequence[str]) -> dict[str, Any]:
    """What `config.json` says of the names of labels; nothing where there are none."""
    if not labels:
        return {}
    named = {str(number): name for number, name in enumerate(labels)}
    return {"id2label": named, "label2id": {name: int(n) for n, name in named.items()}}


def write_folder(
    folder: Path,
    config: Any,
    state: Mapping[str, Tensor],
    tokenizer: Tokenizer | None,
    generation: Mapping[str, Any] | None = None,
    labels: Sequence[str] = (),
    *,
    overwrite: bool = False,
) -> None:
    """Write a model folder that transformers loads with equal logits.

    Raises UsageError where the target exists, and with `overwrite` where it holds files that no
    model folder has; ModelError where tokenizer, state and config do not belong together.
    """
    folder = Path(os.path.abspath(folder))
    _require_room(folder, overwrite=overwrite)
    weights = _foreign_state(config, state, folder)
    ids = _special_ids(config, tokenizer, generation or {}, folder)
    dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        told = write_config(config, dtype=dtype, special_ids=ids) | written_labels(labels)
        write_json(partial / CONFIG, told)
        write_tensors(partial / SINGLE, weights, {"format": "pt"})
        write_json(partial / GENERATION, {**(generation or {}), **_kept_ids(ids, generation or {})})
        for name, text in (tokenizer.files() if tokenizer else {}).items():
            write_text(partial / name, text)
        _replace(partial, folder)
    except OSError as error:
        raise resource_error(error, folder) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _require_room(folder: Path, *, overwrite: bool) -> None:
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        fix = "choose another place, or overwrite it on purpose (overwrite=True)"
        raise UsageError("exists", place=folder, fix=fix)
    if not folder.is_dir() or folder.is_symlink():
        raise UsageError("is not a folder", place=folder, fix="choose another place")
    for path in sorted(folder.iterdir()):
        known = path.name in OURS or path.name.startswith("model") and "safetensors" in path.name
        if not known:
            what = f"holds {path.name}, which is no file of a model"
            raise UsageError(what, place=folder, fix="choose another place, or remove it yourself")


def _foreign_state(config: Any, state: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The tensors as the file names them, after ours were checked against the config."""
    table = written_by(config)
    shapes = expected_shapes(table, config, folder)
    if wrong := sorted(shapes.keys() ^ state.keys()):
        what = f"state does not fit the config: {listing(wrong)}"
        raise ModelError(what, place=folder, fix="save the state of a model of this config")
    for name, shape in shapes.items():
        if tuple(state[name].shape) != shape:
            what = f"{name} has shape {list(state[name].shape)}, wanted {list(shape)}"
            fix = "save the state of a model of this config"
            raise ModelError(what, place=folder, fix=fix)
    return {entry.theirs: entry.write(state) for entry in table.entries(config)}


def _special_ids(
    config: Any, tokenizer: Tokenizer | None, generation: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """Ids of the special tokens: the tokenizer's, else those handed in; null where there is none.

    Null is written because transformers would otherwise fill in the ids of another vocabulary.
    """
    if tokenizer is None:
        return {key: generation.get(key) for key in IDS}
    if tokenizer.vocab_size > config.vocab_size:
        what = f"{tokenizer.vocab_size} token ids, but the embedding has {config.vocab_size} rows"
        raise ModelError(what, place=folder, fix="use the tokenizer that belongs to the model")
    return {key: getattr(tokenizer, name) for key, name in IDS.items()}


def _kept_ids(ids: Mapping[str, Any], generation: Mapping[str, Any]) -> dict[str, Any]:
    """Ids for the generation settings: several end tokens stay, if the tokenizer's is one."""
    return {
        key: generation[key] if _among(value, generation.get(key)) else value
        for key, value in ids.items()
    }


def _among(value: Any, several: Any) -> bool:
    return isinstance(several, list) and value in several


def _replace(partial: Path, folder: Path) -> None:
    """Put the finished folder in its place; an old one is moved aside first, then removed."""
    sync_folder(partial)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        os.rename(folder, aside)
    try:
        os.rename(partial, folder)
    except OSError:
        if aside.exists():
            os.rename(aside, folder)
        raise
    sync_folder(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)
