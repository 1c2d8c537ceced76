"""Second names of config keys: files of one family may say `num_hidden_layers` or `n_layer`.

A mistake in a file is told in the names of that file, whatever we call the numbers.
"""

import re
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


def in_words_of_file(text: str, names: Mapping[str, str]) -> str:
    """A sentence about numbers with names of ours, as `names` has them, put into those of a file.

    Only what stands where a name does is one: at the start, before a number, an operator or a verb.

    >>> in_words_of_file("width (3) must be wider than width", {"width": "hidden_size"})
    'hidden_size (3) must be wider than width'
    """
    ours = "|".join(map(re.escape, names))
    named = rf"(?:^(?:{ours})\b|\b(?:{ours})(?= \(| / |=| is | must ))"
    return re.sub(named, lambda found: names[found[0]], text) if names else text
