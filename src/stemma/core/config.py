"""Strict configuration: unknown keys, wrong types and impossible values stop at the door.

`StrictModel` is the one base of every configuration value: frozen, keyword-only, unknown keys
refused. Recipes come through `stemma.core.yaml_file`, which knows the line of every key.
"""

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """A frozen configuration value that refuses unknown keys and silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


def multiple(name: str, value: int, of_name: str, of: int) -> None:
    """Refuse a number that another does not divide, naming both: for use in validators."""
    if value % of:
        raise ValueError(f"{name} ({value}) must be a multiple of {of_name} ({of})")
