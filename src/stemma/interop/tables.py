"""What a family's table says, and how the tables are found.

One file of this room per family, named like its file in `stemma.models`, holds the whole knowledge
of its foreign form: `MODEL_TYPE`, `ARCHITECTURE`, the config class and builder of ours, the
settings it refuses, two functions for the config and one for the tensors. The files are found by
looking: every module here that defines `MODEL_TYPE` is a table, so a new family edits nothing.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import stemma.interop

Shape = tuple[int, ...]
Keys = Mapping[str, tuple[str, Any]]  # name of ours: (foreign key, its default)
REQUIRED = object()  # the default of a key that must be there


@dataclass(frozen=True)
class Entry:
    """One foreign tensor and those of ours that it holds.

    Several of ours stand one after the other on their first axis (GPT-2 stores query, key and
    value as one matrix); where `heads` is given they alternate head by head, as in BLOOM and
    GPT-NeoX. `transposed` is for matrices stored as (input, output). `part` is for one expert of
    several: the foreign tensor is that element of ours on its first axis. `row` is for a vector
    that is stored as a matrix of one row. `keys` names the config key behind each axis of the
    foreign tensor, so a wrong shape can be explained.
    """

    theirs: str
    ours: tuple[str, ...]
    keys: tuple[str, ...]
    transposed: bool = False
    heads: int = 1
    part: int | None = None
    row: bool = False

    def shape(self, shapes: Mapping[str, Shape]) -> Shape:
        """The shape of the foreign tensor, from those of ours."""
        if self.part is not None:
            return shapes[self.ours[0]][1:]
        if self.row:
            return (1, *shapes[self.ours[0]])
        rows = sum(shapes[name][0] for name in self.ours)
        stacked = (rows, *shapes[self.ours[0]][1:])
        return stacked[::-1] if self.transposed else stacked

    def read(self, tensor: Tensor, shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
        """Ours by name, as views of the foreign tensor: whole, or the one part that it is."""
        if self.part is not None:
            return {self.ours[0]: tensor}
        if self.row:
            return {self.ours[0]: tensor[0]}
        stacked = tensor.T if self.transposed else tensor
        by_head = torch.unflatten(stacked, 0, (self.heads, -1))
        parts = torch.split(by_head, [shapes[name][0] // self.heads for name in self.ours], dim=1)
        return dict(zip(self.ours, (part.flatten(0, 1) for part in parts), strict=True))

    def write(self, state: Mapping[str, Tensor]) -> Tensor:
        """The foreign tensor from ours."""
        if self.part is not None:
            return state[self.ours[0]][self.part].clone()  # a file holds no two that share memory
        if self.row:
            return state[self.ours[0]][None]
        parts = [torch.unflatten(state[name], 0, (self.heads, -1)) for name in self.ours]
        stacked = (torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]).flatten(0, 1)
        return stacked.T.contiguous() if self.transposed else stacked


def pick(foreign: Mapping[str, Any], keys: Keys) -> dict[str, Any]:
    """Numbers of ours by their foreign keys; KeyError with the first key that must be there."""
    return {
        ours: foreign[theirs] if default is REQUIRED else foreign.get(theirs, default)
        for ours, (theirs, default) in keys.items()
    }


class Table(Protocol):
    """The names that a family's file in this room defines.

    Attributes:
        MODEL_TYPE, ARCHITECTURE: the two words of a foreign `config.json` that name the family.
        KEYS: our name of each number, its foreign key, and the default that transformers has.
        FIXED: settings that would change the equation, with the values that do not.
        HARMLESS: further keys that are read by the functions below, or change no equation.
        PREFIX: what old files leave out before every name but the head's; "" where nothing is.
        HEAD, EMBEDDING: foreign names of the two tensors that may be tied.
        IGNORED: a regular expression of foreign tensors that are no parameters.

    A table may also define `ARCHITECTURES`, where a family has several; `RENAMED`, regular
    expressions of old names with what takes their place; `fit(config, names)`, the config after
    the file's tensor names had their say; `copies(config)`, pairs of a tensor that a file may say
    again and its original; `expresses(config)`, false where only our own form can say it.
    """

    MODEL_TYPE: str
    ARCHITECTURE: str
    CONFIG: Callable[..., Any]
    KEYS: Keys
    FIXED: Mapping[str, tuple[Any, ...]]
    HARMLESS: frozenset[str]
    PREFIX: str
    HEAD: str
    EMBEDDING: str
    IGNORED: str
    config_from_foreign: Callable[[Mapping[str, Any]], dict[str, Any]]
    config_to_foreign: Callable[[Any], dict[str, Any]]
    entries: Callable[[Any], Iterable[Entry]]
    build: Callable[[Any], nn.Module]


@cache
def tables() -> dict[str, Any]:
    """Every family's table, by the family's name (a `Table` each)."""
    modules = {
        info.name: importlib.import_module(f"stemma.interop.{info.name}")
        for info in pkgutil.iter_modules(stemma.interop.__path__)
    }
    return {name: module for name, module in modules.items() if hasattr(module, "MODEL_TYPE")}
