"""The `config.json` of a Hugging Face folder: what it may say, and what it says in our numbers.

Every setting that would change an equation is either read or refused by name; a key that asks for
code from the folder is refused, and nothing of it is ever imported. Keys that change no equation
are let pass, those that no list here knows with a line in the log.
"""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stemma.core.config import complaint
from stemma.core.errors import ModelError, closest, nearest
from stemma.interop.aliases import in_words_of_file
from stemma.interop.native import MODEL_TYPE_OF_OURS, native_families, read_by, written_by
from stemma.interop.rope import key_of
from stemma.interop.tables import tables

log = logging.getLogger(__name__)

RUNS_CODE = ("auto_map", "trust_remote_code", "_attn_implementation_internal", "custom_pipelines")
FIXED: Mapping[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,),
    "quantization_config": (None,),
    "compression_config": (None,),
    "per_layer_config": (None, {}),
    "pruned_heads": ({}, None),
}
HARMLESS = frozenset(
    "architectures model_type torch_dtype dtype transformers_version use_cache bos_token_id "
    "eos_token_id pad_token_id _name_or_path return_dict output_hidden_states output_attentions "
    "chunk_size_feed_forward id2label label2id problem_type torchscript use_bfloat16 "
    "_attn_implementation attn_implementation tie_last_hidden_states gradient_checkpointing".split()
)


def refuse_code(foreign: Mapping[str, Any], path: Path, *, replaced: Collection[str] = ()) -> None:
    """Raise ModelError, naming the key, where a file wants code from the folder to run.

    `replaced` names classes as `MODULE.CLASS` that a network of ours computes in their place:
    where `auto_map` asks for nothing else it passes, and that code is not run either.
    """
    for key in RUNS_CODE:
        if key == "auto_map" and _all_replaced(foreign.get(key), replaced):
            log.info("%s: the folder's own code is not run; ours computes the same", path)
            continue
        if foreign.get(key):
            raise ModelError(
                "asks for code that lies with the model, which is never run",
                place=f"{path}: {key}",
                fix="use a model of a known architecture, or remove the key if it is not needed",
            )


def _all_replaced(auto_map: Any, replaced: Collection[str]) -> bool:
    """Whether every class that is asked for is known; names may begin with `REPOSITORY--`."""
    names = list(auto_map.values()) if isinstance(auto_map, dict) else []
    plain = [name.rpartition("--")[2] if isinstance(name, str) else "" for name in names]
    return bool(names) and all(name in replaced for name in plain)


def _replaced_by_ours(foreign: Mapping[str, Any]) -> Collection[str]:
    """What the family that `model_type` names lists as `REPLACED_CODE`, if it does."""
    found = [t for t in tables().values() if foreign.get("model_type") == t.MODEL_TYPE]
    return getattr(found[0], "REPLACED_CODE", ()) if found else ()


def find_family(foreign: Mapping[str, Any], path: Path) -> str:
    """The family whose table fits `model_type` and `architectures`; ModelError where none does."""
    known = {table.MODEL_TYPE: name for name, table in tables().items()}
    model_type = foreign.get("model_type")
    if model_type == MODEL_TYPE_OF_OURS:
        return _own_family(foreign, path)
    if not isinstance(model_type, str) or model_type not in known:
        # a near name must be very near: mamba is no misspelling of llama
        near = closest(str(model_type), known, likeness=0.75)
        raise ModelError(
            f"unknown model type {model_type!r}",
            place=f"{path}: model_type",
            fix=f"did you mean {near[0]}" if near else f"known: {', '.join(sorted(known))}",
        )
    family = known[model_type]
    table = tables()[family]
    wanted = getattr(table, "ARCHITECTURES", (table.ARCHITECTURE,))
    if foreign.get("architectures") not in (None, *([name] for name in wanted)):
        named = " or ".join(map(repr, wanted))
        raise ModelError(
            f"found architecture {foreign['architectures']}, wanted {named}",
            place=f"{path}: architectures",
            fix=f"give a checkpoint of {named}",
        )
    return family


def _own_family(foreign: Mapping[str, Any], path: Path) -> str:
    """The family that a folder of ours names; ModelError for one that is not known."""
    family, known = foreign.get("family"), native_families()
    if family not in known:
        what, fix = f"unknown family {family!r}", nearest(str(family), known)
        raise ModelError(what, place=f"{path}: family", fix=fix)
    return str(family)


def architecture_of(foreign: Mapping[str, Any], table: Any) -> str:
    """The architecture that a folder names, of those that its family has."""
    said, plain = foreign.get("architectures"), str(table.ARCHITECTURE)
    known = getattr(table, "ARCHITECTURES", (plain,))
    return next((name for name in known if said == [name]), plain)


def read_config(foreign: Mapping[str, Any], path: Path) -> tuple[str, Any]:
    """Family and config of ours from a parsed `config.json`.

    Raises ModelError that names the key for anything we cannot compute exactly.
    """
    refuse_code(foreign, path, replaced=_replaced_by_ours(foreign))
    family = find_family(foreign, path)
    table = read_by(foreign, family)
    for key, allowed in {**FIXED, **table.FIXED}.items():
        if key in foreign and foreign[key] not in allowed:
            raise ModelError(
                f"{foreign[key]!r} is not supported, only {allowed[0]!r}",
                place=f"{path}: {key}",
                fix="use another model",
            )
    try:
        numbers = table.config_from_foreign(foreign)
    except KeyError as error:
        place = f"{path}: {error.args[0]}"
        raise ModelError("the key is missing", place=place, fix="add it") from error
    except ValueError as error:
        raise ModelError(str(error), place=path, fix="use another model") from error
    _account_for_keys(foreign, table, path)
    try:
        return family, table.CONFIG(**numbers)
    except ValidationError as error:
        raise _refused(error, table, numbers, foreign, path) from error


def _account_for_keys(foreign: Mapping[str, Any], table: Any, path: Path) -> None:
    """Log what no list knows; refuse it in a folder of our own form, where nothing else stands."""
    known = {theirs for theirs, _ in table.KEYS.values()}
    known |= HARMLESS | table.HARMLESS | FIXED.keys() | table.FIXED.keys() | set(RUNS_CODE)
    unknown = sorted(foreign.keys() - known)
    if unknown and table.MODEL_TYPE == MODEL_TYPE_OF_OURS:
        fix = nearest(unknown[0], table.KEYS)
        raise ModelError("unknown key", place=f"{path}: {unknown[0]}", fix=fix)
    if unknown:
        log.warning("config.json: keys without effect here: %s", ", ".join(unknown[:10]))


def _refused(
    error: ValidationError,
    table: Any,
    numbers: Mapping[str, Any],
    foreign: Mapping[str, Any],
    path: Path,
) -> ModelError:
    """The first complaint of pydantic in the words of the file."""
    ours, what, _ = complaint(error, table.CONFIG, numbers)
    names = {"rope_base": "rope_theta"}  # read and written apart from the other keys
    names |= {name: theirs for name, (theirs, _) in table.KEYS.items()}
    for alias, first in getattr(table, "ALIASES", {}).items():
        if foreign.get(first) is None and foreign.get(alias) is not None:
            names = {name: alias if theirs == first else theirs for name, theirs in names.items()}
    outer, dot, inner = ours.partition(".")
    inner = key_of(numbers.get(outer), inner)
    place = f"{path}: {names.get(outer, outer)}{dot}{inner}" if ours else path
    return ModelError(in_words_of_file(what, names), place=place, fix="correct config.json")


def write_config(config: Any, *, dtype: str, special_ids: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` of one of our configs, for transformers 4 and 5 alike."""
    table = written_by(config)
    foreign = {
        "architectures": [table.ARCHITECTURE],
        "model_type": table.MODEL_TYPE,
        **table.config_to_foreign(config),
        **special_ids,
        "dtype": dtype,
        "torch_dtype": dtype,  # the name of `dtype` before transformers 4.56
        "use_cache": True,
    }
    return dict(sorted(foreign.items()))
