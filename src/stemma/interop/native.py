"""Folders of families that no other library has: our own names of numbers and tensors.

`config.json` says `"model_type": "stemma"`, then the family, its version and its numbers; the
tensors lie in `model.safetensors` as the network names them. So recurrent networks, linear
attention and encoder-decoders of ours are saved, checked and loaded like every other model.
"""

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_jsonable_python

import stemma.models
from stemma.interop.tables import REQUIRED, Entry, Keys, pick, tables
from stemma.nn.meta import shapes_only

MODEL_TYPE_OF_OURS = "stemma"
ARCHITECTURE_OF_OURS = "StemmaModel"


@dataclass(frozen=True)
class NativeTable:
    """A `Table` made from the family itself: every number and every tensor under its own name."""

    family: str
    MODEL_TYPE: str = MODEL_TYPE_OF_OURS
    ARCHITECTURE: str = ARCHITECTURE_OF_OURS
    FIXED: Mapping[str, tuple[Any, ...]] = field(
        default_factory=lambda: {"is_encoder_decoder": (False, True)}
    )
    HARMLESS: frozenset[str] = frozenset({"family", "family_version"})
    PREFIX: str = ""
    HEAD: str = ""
    EMBEDDING: str = ""
    IGNORED: str = r"$^"

    @property
    def CONFIG(self) -> Any:  # noqa: N802  (the name that tables have)
        """The class of the family's config."""
        kinds = [kind for kind in vars(self._module).values() if isinstance(kind, type)]
        return next(kind for kind in kinds if getattr(kind, "family", None) == self.family)

    @property
    def KEYS(self) -> Keys:  # noqa: N802
        """Every number under its own name."""
        return {name: (name, REQUIRED) for name in self.CONFIG.model_fields}

    @property
    def _module(self) -> Any:
        return importlib.import_module(f"stemma.models.{self.family}")

    def build(self, config: Any) -> Any:
        """The network of a config."""
        return self._module.build(config)

    def config_from_foreign(self, foreign: Mapping[str, Any]) -> dict[str, Any]:
        """The numbers as they stand, every one of them.

        Raises KeyError for one that is missing, which a default must not replace, and ValueError
        for a version of the family that is not known.
        """
        known = self.CONFIG.family_version
        if foreign.get("family_version") != known:
            found = foreign.get("family_version")
            raise ValueError(f"version {found!r} of the family {self.family}, known is {known}")
        return pick(foreign, self.KEYS)

    def config_to_foreign(self, config: Any) -> dict[str, Any]:
        """Family, version and numbers."""
        return {
            "family": config.family,
            "family_version": config.family_version,
            **to_jsonable_python(dict(config)),  # all fields, where a dump may leave some out
        }

    def entries(self, config: Any) -> Iterator[Entry]:
        """Every tensor under the name that the network gives it."""
        with shapes_only():
            model = self.build(config)
        for name, _ in model.named_parameters():
            yield Entry(name, (name,), ("the numbers",))


def written_by(config: Any) -> Any:
    """The table by which a network is written: that of a foreign library, else our own.

    A table with a function `expresses` may say of a config that its library has no such network.
    """
    table = tables().get(config.family)
    expresses = getattr(table, "expresses", None)
    if table is None or (expresses is not None and not expresses(config)):
        return NativeTable(config.family)
    return table


def read_by(foreign: Mapping[str, Any], family: str) -> Any:
    """The table by which a folder is read: our own where it says so, whoever else has the family.

    A folder written before a family had a foreign form goes on to load.
    """
    own = foreign.get("model_type") == MODEL_TYPE_OF_OURS
    return NativeTable(family) if own else tables()[family]


def native_families() -> list[str]:
    """Every family that can be built here: any of them may be the family of such a folder."""
    return sorted(info.name for info in pkgutil.iter_modules(stemma.models.__path__))
