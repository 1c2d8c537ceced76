"""The catalogue of assets: what is known by name, where it is, how it is recognised.

Ours is assets.yaml beside this file, and the user's own is a file of that name in the cache folder.
Each asset is pinned to a version and a sha256; a name that is taken cannot be given again.
"""

import os
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from stemma.core.config import StrictModel
from stemma.core.errors import ResourceError, UsageError, nearest
from stemma.core.yaml_file import Node, at, build, read_yaml

SHAPES = {
    "pypi": r"(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>[\w.!+-]+)",
    "npm": r"(?P<name>(@[a-z0-9][\w.~-]*/)?[a-z0-9][\w.~-]*)@(?P<version>\d[\w.+-]*)",
    "deb": r"(?P<name>[a-z0-9][a-z0-9+.-]+)=(?P<version>[\w.+:~-]+)",
    "hf": r"(?P<repo>\w[\w.-]*/[\w.-]+)/(?P<file>[^@]+)@(?P<revision>[\w./-]+)",
    "path": r"(?P<path>[/~].*|[A-Za-z]:[\\/].*)",
}
WRITTEN = (
    "pypi:NAME==VERSION, npm:NAME@VERSION, deb:NAME=VERSION, "
    "hf:OWNER/REPO/FILE@REVISION or path:/ABSOLUTE/PATH"
)


class Archive(StrictModel):
    """One of the archives that an asset comes in, and what is kept of it."""

    source: str = Field(description="where it comes from")
    sha256: str = Field("", description="of the archive; may be left out for path: only")
    bytes: int = Field(0, ge=0, description="size of the archive")
    files: tuple[str, ...] = Field(min_length=1, description="patterns of the files to keep")

    @model_validator(mode="after")
    def _is_pinned(self) -> "Archive":
        require_pinned(self.source, self.sha256)
        return self


class Asset(StrictModel):
    """One entry of the catalogue: where it is, how it is recognised, what is kept of it."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="the name to pull it by")
    kind: Literal["text", "model", "tokenizer", "tasks"] = Field(description="what it is for")
    summary: str = Field(description="one line for `stemma list assets`")
    source: str = Field(description="where it comes from")
    licence: str = Field(description="the terms of the files that are kept")
    terms: str = Field("", description="address of terms to agree to before it is fetched")
    sha256: str = Field("", description="of the archive; may be left out for path: only")
    bytes: int = Field(0, ge=0, description="size of the archive, or of all of them")
    files: tuple[str, ...] = Field(min_length=1, description="patterns of the files to keep")
    further: tuple[Archive, ...] = Field((), description="archives that hold the rest of it")
    joined: str = Field("", description="file to make of NAME.part*, one after the other")

    @model_validator(mode="after")
    def _is_pinned(self) -> "Asset":
        require_pinned(self.source, self.sha256)
        if self.joined and not re.fullmatch(r"[\w-][\w.-]*", self.joined, re.ASCII):
            raise ValueError(f"joined must be a plain file name (got {self.joined!r})")
        return self


def require_pinned(source: str, sha256: str) -> None:
    """Refuse a source of an unknown form, or one that nothing is known to recognise by."""
    prefix, _, rest = source.partition(":")
    if not re.fullmatch(SHAPES.get(prefix, r"(?!)"), rest, re.ASCII):
        raise ValueError(f"the source {source} is not written as {WRITTEN}")
    if not re.fullmatch("[0-9a-f]{64}", sha256) and (prefix != "path" or sha256):
        raise ValueError(f"sha256 must be 64 lower-case hex digits (got {sha256!r})")


def cache_folder() -> Path:
    """$STEMMA_HOME, else the user's cache folder ($XDG_CACHE_HOME or ~/.cache) with /stemma."""
    if home := os.environ.get("STEMMA_HOME"):
        return Path(os.path.abspath(os.path.expanduser(home)))
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(cache):  # the XDG specification: a relative path is to be ignored
        return Path(cache) / "stemma"
    try:
        return Path.home() / ".cache" / "stemma"
    except RuntimeError as error:
        raise ResourceError("you have no home folder", fix="set STEMMA_HOME to a folder") from error


def catalogue() -> dict[str, Asset]:
    """Every known asset by name: ours, then those of assets.yaml in the cache folder.

    Raises UsageError with file and line for a malformed entry or a name that is already ours.
    """
    assets = read_catalogue(Path(__file__).with_name("assets.yaml"))
    own = cache_folder() / "assets.yaml"
    if own.exists():
        assets |= read_catalogue(own, taken=assets)
    return assets


def read_catalogue(path: Path, *, taken: dict[str, Asset] | None = None) -> dict[str, Asset]:
    """The assets of one YAML file: a mapping from name to the other fields of `Asset`."""
    root = read_yaml(path)
    if not isinstance(root.value, dict):
        raise UsageError("expected asset names, each with its keys", place=root.place)
    assets = {}
    for name, node in root.value.items():
        if name in (taken or {}):
            what = f"the name {name} is taken by an asset of Stemma"
            raise UsageError(what, place=at(root, name), fix="choose another name")
        if not isinstance(node.value, dict) or "name" in node.value:
            what = "expected the keys of an asset; its name stands before the colon"
            raise UsageError(what, place=at(root, name), fix="correct it")
        fields = {"name": Node(name, root.key_places[name], quoted=True), **node.value}
        places = {"name": root.key_places[name], **node.key_places}
        assets[name] = build(Asset, Node(fields, node.place, key_places=places), key=name)
    return assets


def find(name: str) -> Asset:
    """The asset of that name. Raises UsageError with the nearest names where there is none."""
    assets = catalogue()
    if name not in assets:
        raise UsageError(f"no asset is named {name}", fix=nearest(name, assets))
    return assets[name]


def parts_of(asset: Asset) -> list[Asset]:
    """An asset of several archives as so many assets of one."""
    rest = sum(archive.bytes for archive in asset.further)
    first = asset.model_copy(update={"bytes": max(0, asset.bytes - rest)})
    return [first, *(asset.model_copy(update=dict(archive)) for archive in asset.further)]
