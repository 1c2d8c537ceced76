"""What a stage is given to work with: its folder, its seed, its inputs, and how to say things."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

from stemma import api
from stemma.core import assets
from stemma.core.distributed import ALONE, World
from stemma.core.errors import DataError, UsageError
from stemma.core.files import sha256_file, sha256_json
from stemma.core.progress import LOG, progress
from stemma.data.chatml import with_chatml
from stemma.data.renderer import Renderer
from stemma.data.sources import Kind, find_files, source_name
from stemma.data.tokenizer import Tokenizer

DOES = {  # what a model may have to do in a stage, and which one does
    "continue": ("continue a text", "use a causal language model"),
    "read": ("read a text from both sides", "use an encoder, as of the family bert"),
    "translate": ("write what it reads in other words", "use an encoder-decoder"),
}
TODAY = date(2024, 7, 26)  # what a template that asks is told: training must not depend on the day


@dataclass(frozen=True)
class Input:
    """Something a stage reads: where it lies, and a fingerprint of what it holds."""

    path: Path
    fingerprint: str


Read = TypeVar("Read")
Groups = list[tuple[Path, list[Path]]]
"""Files to read, each group with the folder that its names are told from."""


@dataclass
class Work:
    """One stage at work.

    `inputs` has an entry for every reference in its configuration, `files` one for every key that
    names documents. `resumed`: an earlier run began this stage. `reset_data`: training may go on
    with other data than it began with. Once it has found them fitting, `begun` is true, and
    `data_resets` has every such change so far. `world` are the processes that work on it together;
    what is written once is written by their leader.
    """

    name: str
    folder: Path
    seed: int
    inputs: dict[str, Input] = field(default_factory=dict)
    files: dict[str, Groups] = field(default_factory=dict)
    resumed: bool = False
    reset_data: bool = False
    begun: bool = False
    data_resets: list[dict[str, Any]] = field(default_factory=list)
    world: World = ALONE

    def corpus(self, reference: str) -> tuple[Path, Path]:
        """The training and the held-out documents of a curate stage."""
        folder = self.inputs[reference].path
        return folder / "train.jsonl", folder / "heldout.jsonl"

    def model(self, reference: str, does: str = "continue") -> tuple[Any, Tokenizer]:
        """A model and its tokenizer; a model without one cannot go through a stage.

        `does`: what the model must do (`api.does`), "" for anything. Raises UsageError for others.
        """
        model, tokenizer = api.load(str(self.inputs[reference].path))
        family = model.config.family
        if does and api.does(family) != does:
            what, fix = DOES[does]
            raise UsageError(f"the family {family} does not {what}", place=reference, fix=fix)
        if tokenizer is None:
            raise UsageError(
                "the model has no tokenizer", place=reference, fix="add tokenizer.json"
            )
        return model, tokenizer

    def chat_model(self, reference: str, template: str = "auto") -> tuple[Any, Tokenizer, Renderer]:
        """A model that can be talked to: where it has no template of its own, by ChatML.

        `template`: "auto", or "chatml" to use that whatever the model has. Tokens that ChatML needs
        and the model lacks get rows of their own.
        """
        model, tokenizer = self.model(reference)
        if template == "chatml" or tokenizer.template is None:
            tokenizer = with_chatml(tokenizer)
        return (
            api.with_vocabulary(model, tokenizer.vocab_size),
            tokenizer,
            Renderer(tokenizer, today=TODAY),
        )


def require_context(context: int, model: Any, *, place: str, whose: str = "the model") -> None:
    """Refuse a context that a model does not have (UsageError)."""
    if context > model.config.context:
        what = f"context ({context}) is longer than {whose}'s ({model.config.context})"
        raise UsageError(what, place=place, fix=f"use at most context={model.config.context}")


def model_fingerprint(reference: str, root: Path, *, out: Path) -> str:
    """What a model that no stage made holds. An asset is told by the catalogue, not fetched."""
    if reference.startswith("asset:"):
        return asset_fingerprint(reference)
    found = api.find_model(own_path(reference, root, out=out))
    if found.is_file():
        return file_hashes([found], found.parent)
    return file_hashes(sorted(f for f in found.iterdir() if f.is_file()), found)


def model_path(reference: str, root: Path, *, out: Path) -> Path:
    """Where a model that no stage made lies; an asset is fetched."""
    if reference.startswith("asset:"):
        return pulled(reference)
    return own_path(reference, root, out=out)


def pulled(reference: str) -> Path:
    """The folder of `asset:NAME`, fetched with a progress bar where it is not there yet."""
    asset = assets.find(reference.removeprefix("asset:"))
    if (folder := assets.pulled(asset.name)) is not None:
        return folder
    assets.agree(asset)  # before the bar, which would hide the question
    with progress(f"pull {asset.name}", asset.bytes or 1) as update:
        return assets.pull(asset.name, on_progress=update)


def asset_fingerprint(reference: str) -> str:
    """What an asset holds, told by the catalogue where its hash is pinned: nothing is fetched."""
    asset = assets.find(reference.removeprefix("asset:"))
    if asset.sha256:
        further = [archive.sha256 for archive in asset.further]
        return sha256_json([asset.sha256, list(asset.files), *further])
    folder = pulled(reference)
    return file_hashes(sorted(f for f in folder.rglob("*") if f.is_file()), folder)


def documents_fingerprint(
    references: tuple[str, ...], root: Path, *, out: Path, kinds: Mapping[str, Kind]
) -> str:
    """What a stage would read: contents of files, hashes of assets."""
    parts = []
    for reference in references:
        if reference.startswith("asset:"):
            parts.append(asset_fingerprint(reference))
        else:
            inside, files = own_files(reference, root, out=out, kinds=kinds)
            parts.append(file_hashes(files, inside))
    return sha256_json(parts)


def document_files(
    references: tuple[str, ...], root: Path, *, out: Path, kinds: Mapping[str, Kind]
) -> Groups:
    """The files that a stage reads, each with the folder its name is told from.

    Assets are pulled, folders and globs walked, a file named twice is read once.
    """
    seen: set[Path] = set()
    groups = []
    for reference in references:
        if reference.startswith("asset:"):
            inside = pulled(reference)
            files = find_files([str(inside)], inside, kinds)
        else:
            inside, files = own_files(reference, root, out=out, kinds=kinds)
        fresh = [f for f in files if f.resolve() not in seen]
        seen |= {f.resolve() for f in fresh}
        groups.append((inside, fresh))
    return [(inside, files) for inside, files in groups if files]


def read_groups(
    groups: Groups, read: Callable[[list[Path], Path], Iterator[Read]]
) -> Iterator[Read]:
    """What all groups hold; an error names the file as it is found from where we are."""
    for root, files in groups:
        try:
            yield from read(files, root)
        except DataError as error:
            below = root.resolve().is_relative_to(Path.cwd().resolve())
            place = os.path.join(os.path.relpath(root) if below else root, error.place)
            place = place.removeprefix("./").rstrip("/")
            raise DataError(error.what, place=place, fix=error.fix) from error


def own_path(reference: str, root: Path, *, out: Path) -> Path:
    """A path seen from the recipe; the run folder itself is no input (UsageError)."""
    path = (root / Path(reference).expanduser()).absolute()
    if path.exists() and path.resolve().is_relative_to(out.resolve()):
        what = f"the input lies in the run folder {out}"
        raise UsageError(what, place=reference, fix="choose another folder with out=")
    return path


def own_files(
    reference: str, root: Path, *, out: Path, kinds: Mapping[str, Kind]
) -> tuple[Path, list[Path]]:
    """Files of a folder, file or glob. What runs made is no document: their folders are left out.

    Raises UsageError where nothing is left, and what `find_files` raises.
    """
    path = own_path(reference, root, out=out)
    inside = path if path.is_dir() else root.absolute()
    found = find_files([str(path)], inside, kinds)
    below = {p for f in found for p in f.parents if p.is_relative_to(inside)}
    made = {folder for folder in below if is_made(folder, out)}
    files = [f for f in found if made.isdisjoint(f.parents)]
    if len(files) < len(found):
        LOG.warning("%s: %d files of run folders are left out", reference, len(found) - len(files))
    if not files:
        what = "all of the input lies in run folders"
        raise UsageError(what, place=reference, fix="name documents, or another folder with out=")
    return inside, files


def is_made(folder: Path, out: Path) -> bool:
    """Whether a folder is this run's, or holds the record of an earlier one."""
    if folder.resolve() == out.resolve():
        return True
    for name, key in (("run.json", "stages"), ("stage.json", "fingerprint")):
        try:
            record = json.loads((folder / name).read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(record, dict) and record.keys() >= {"format_version", key}:
            return True
    return False


def file_hashes(files: list[Path], inside: Path) -> str:
    """Names as the reader tells them, and contents, in order, as one hash."""
    return sha256_json([[source_name(f, inside), sha256_file(f)] for f in files])
