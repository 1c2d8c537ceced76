"""Second names of config keys: files of one family may say `num_hidden_layers` or `n_layer`."""

from collections.abc import Mapping
from typing import Any


def first_names(foreign: Mapping[str, Any], aliases: Mapping[str, str]) -> dict[str, Any]:
    """The config with every alias under its first name; ValueError where the two disagree."""
    named = {key: value for key, value in foreign.items() if key not in aliases}
    for alias, name in aliases.items():
        if foreign.get(alias) is None:
            continue
        if named.setdefault(name, foreign[alias]) != foreign[alias]:
            what = f"{alias} is {foreign[alias]!r}, but {name} is {named[name]!r}"
            raise ValueError(f"{what}; the two mean the same")
    return named
