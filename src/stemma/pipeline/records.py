"""What a stage's folder says of itself, and what that means for the recipe of today.

`stage.json` is the record of a stage: what it was asked for, what it read, what it made. A stage
is the same as long as its fingerprint is. Where it is another, the difference is told in words;
and a stage in the middle of its training may go on with other data, if nothing else differs.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stemma.core.errors import UsageError

FORMAT_VERSION = 1
SHOWN = 8  # digits of a fingerprint in a message


def read_record(folder: Path) -> dict[str, Any] | None:
    """A stage's record, or None where there is none. Raises UsageError for a newer format."""
    path = folder / "stage.json"
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text("utf-8"))
        version = record["format_version"]
        newer = version > FORMAT_VERSION
    except (ValueError, KeyError, TypeError) as error:
        fix = f"move {folder} away, and the stage is run anew"
        raise UsageError(f"not a stage's record ({error})", place=path, fix=fix) from error
    if newer:
        what = f"format_version {version} is newer than the {FORMAT_VERSION} this version knows"
        raise UsageError(what, place=path, fix="update stemma-lm")
    return record


def settings(stage: Any, *, defaults: bool) -> dict[str, Any]:
    """What of a stage's configuration decides its result, with or without values left as they are.

    The fingerprint goes without: a key that a later version adds, and a recipe does not use, then
    leaves the results of this version valid. Who changes a default raises the stage's VERSION.
    """
    values = stage.model_dump(mode="json", exclude_defaults=not defaults)
    return {key: value for key, value in values.items() if key not in stage.UNSEEN}


def intact(folder: Path, record: dict[str, Any]) -> str:
    """Empty where every recorded output is there with its size, else the first that is not."""
    for name, about in record.get("outputs", {}).items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != about["bytes"]:
            return str(name)
    return ""


def judge(folder: Path, record: dict[str, Any], fingerprint: str) -> tuple[str, str]:
    """Complete, half done, changed, or new where there is nothing to lose; and a word on it."""
    if record.get("fingerprint") != fingerprint:
        # a stage that failed before it made anything has nothing to lose
        begun = any(any(folder.glob(part)) for part in ("steps/*", "trials/*/*/*"))
        made = record.get("status") == "complete" or begun
        return ("changed" if made else "new"), ""
    if record.get("status") != "complete":
        return "half done", ""
    lost = intact(folder, record)
    return ("half done", f"{lost} is missing or has another size") if lost else ("complete", "")


def other_settings(record: dict[str, Any], stage: Any) -> list[str]:
    """Keys of a stage whose values are not those of the record.

    A key that the record does not know yet counts where it is set.
    """
    old, new = record.get("config", {}), settings(stage, defaults=True)
    given = settings(stage, defaults=False)
    return [k for k in new if (old[k] != new[k] if k in old else k in given)]


def other_inputs(record: dict[str, Any], inputs: dict[str, str]) -> list[str]:
    """Inputs that the record does not have, has otherwise, or has alone."""
    old = record.get("inputs", {})
    return [name for name in {**inputs, **old} if old.get(name) != inputs.get(name)]


def changes(record: dict[str, Any], stage: Any, inputs: dict[str, str], seed: int) -> str:
    """Which settings or inputs of a stage differ from the record, with both values."""
    old, new = record.get("config", {}), settings(stage, defaults=True)
    words = [f"{k} was {old.get(k)!r}, now {new[k]!r}" for k in other_settings(record, stage)[:3]]
    before = record.get("inputs", {})
    for name in (name for name in other_inputs(record, inputs) if name in inputs):
        both = (before.get(name, "none")[:SHOWN], inputs[name][:SHOWN])
        words.append("input {} was {}, now {}".format(name, *both))
    if record.get("seed", seed) != seed:
        words.append(f"seed was {record['seed']}, now {seed}")
    return "; ".join(words) or "the seed or the version of this stage's code"


def with_other_data(
    folder: Path, record: dict[str, Any], stage: Any, version: int, names: Iterable[str]
) -> str:
    """What `--reset-data` makes of a changed stage: "other data", "kept", or "" for nothing.

    `names` are those of the inputs that differ. Training that has not ended goes on where only its
    data differ; a tokenizer stays that only read other documents, since the weights know its ids.
    """
    if record.get("kind") != stage.kind or record.get("kind_version") != version:
        return ""
    keys, complete = set(other_settings(record, stage)), record.get("status") == "complete"
    if stage.kind == "tokenizer":
        return "kept" if complete and not keys and not intact(folder, record) else ""
    if not hasattr(stage, "DATA") or complete or not keys <= stage.DATA:
        return ""
    old = record.get("config", {})
    data = {name for key in stage.DATA_INPUTS for name in (getattr(stage, key), old.get(key))}
    return "other data" if all(n in data or n.split()[0] == "files" for n in names) else ""
