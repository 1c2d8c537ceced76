"""Strict configuration: unknown keys, wrong types and impossible values stop at the door.

`StrictModel` is the one base of every configuration value: frozen, keyword-only, unknown keys
refused. Recipes come through `stemma.core.yaml_file`, which knows the line of every key.
"""

import difflib
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """A frozen configuration value that refuses unknown keys and silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


def multiple(name: str, value: int, of_name: str, of: int) -> None:
    """Refuse a number that another does not divide, naming both: for use in validators."""
    if value % of:
        raise ValueError(f"{name} ({value}) must be a multiple of {of_name} ({of})")


def nearest(word: str, known: Iterable[str]) -> str:
    """The way out of a misspelling: 'did you mean X', or the known words where none is near.

    >>> nearest("learing_rate", ["learning_rate", "steps"])
    'did you mean learning_rate'
    """
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}" if close else f"known: {', '.join(known)}"
