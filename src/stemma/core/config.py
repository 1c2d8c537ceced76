"""Strict configuration: unknown keys, wrong types and impossible values stop at the door.

`StrictModel` is the one base of every configuration value: frozen, keyword-only, unknown keys
refused. Recipes come through `stemma.core.yaml_file`, which knows the line of every key.
"""

from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError


class StrictModel(BaseModel):
    """A frozen configuration value that refuses unknown keys and silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


def multiple(name: str, value: int, of_name: str, of: int) -> None:
    """Refuse a number that another does not divide, with the nearest that it does: in validators.

    >>> multiple("width", 64, "num_heads", 4)
    """
    if value % of:
        below = value // of * of
        near = f"{below} or {below + of}" if below else str(of)
        of_what = of_name if of_name.startswith(str(of)) else f"{of_name} ({of})"
        raise ValueError(f"{name} ({value}) must be a multiple of {of_what}, such as {near}")


class Complaint(NamedTuple):
    """What is wrong with a configuration: its key, "" where several disagree, and a sentence.

    `kind` is pydantic's name of the mistake, such as "missing" or "extra_forbidden".
    """

    key: str
    what: str
    kind: str


def complaint(error: ValidationError) -> Complaint:
    """The first of pydantic's complaints in our words."""
    first = error.errors(include_url=False)[0]
    key, kind = str(first["loc"][0]) if first["loc"] else "", first["type"]
    own = {"missing": "required key is missing", "extra_forbidden": "unknown key"}
    if kind in own:
        return Complaint(key, own[kind], kind)
    what, value = first["msg"].removeprefix("Value error, "), first["input"]
    got = f" (got {value!r:.60})" if key and not isinstance(value, dict) else ""
    return Complaint(key, what[:1].lower() + what[1:] + got, kind)
