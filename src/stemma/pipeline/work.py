"""What a stage is given to work with: its folder, its seed, its inputs, and how to say things."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stemma import api
from stemma.core import assets
from stemma.core.errors import DataError, UsageError
from stemma.core.files import sha256_file, sha256_json
from stemma.data.sources import find_files
from stemma.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Input:
    """Something a stage reads: where it lies, and a fingerprint of what it holds."""

    path: Path
    fingerprint: str


@dataclass
class Work:
    """One stage at work. `inputs` has an entry for every reference in its configuration."""

    name: str
    folder: Path
    seed: int
    inputs: dict[str, Input] = field(default_factory=dict)
    stages: dict[str, Path] = field(default_factory=dict)

    def corpus(self, reference: str) -> tuple[Path, Path]:
        """The training and the held-out documents of a curate stage."""
        folder = self.inputs[reference].path
        return folder / "train.jsonl", folder / "heldout.jsonl"

    def model(self, reference: str) -> tuple[Any, Tokenizer]:
        """A model and its tokenizer; a model without one cannot go through a stage."""
        model, tokenizer = api.load(str(self.inputs[reference].path))
        if tokenizer is None:
            raise UsageError("the model has no tokenizer", place=reference)
        return model, tokenizer


def outside_model(reference: str, root: Path, *, out: Path) -> Input:
    """Resolve a model that no stage made: `asset:NAME`, or a path."""
    if reference.startswith("asset:"):
        asset = assets.find(reference.removeprefix("asset:"))
        return Input(assets.pull(asset.name), sha256_json([asset.source, asset.sha256]))
    path = input_place(reference, root, out=out)
    if not path.exists():
        raise UsageError("no such model", place=reference, fix="check the path")
    files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
    return Input(path, sha256_json([[f.name, sha256_file(f)] for f in files]))


def document_files(
    references: tuple[str, ...], root: Path, *, out: Path
) -> list[tuple[Path, list[Path]]]:
    """The files that a curate stage reads, by the folder their names are told from.

    Assets are pulled, folders and globs walked, a file named twice is read once. The run folder is
    left out where it lies inside a folder that is read.
    """
    seen: set[Path] = set()
    groups = []
    for reference in references:
        place = input_place(reference, root, out=out)
        inside = (place if place.is_dir() else root).absolute()
        found = find_files([str(place.absolute())], inside)
        files = [f for f in found if not f.resolve().is_relative_to(out.resolve())]
        groups.append((inside, [f for f in files if f.resolve() not in seen]))
        seen |= {f.resolve() for f in files}
    if not seen:
        raise DataError(f"no documents in {', '.join(references)}", fix="check the inputs")
    return groups


def input_place(reference: str, root: Path, *, out: Path) -> Path:
    """Where an input lies: the folder of an asset, or a path (or glob) seen from the recipe."""
    if reference.startswith("asset:"):
        return assets.pull(reference.removeprefix("asset:"))
    path = root / Path(reference).expanduser()
    if path.exists() and path.resolve().is_relative_to(out.resolve()):
        what = f"the input lies in the run folder {out}"
        raise UsageError(what, place=reference, fix="choose another folder with out=")
    return path


def file_hashes(groups: list[tuple[Path, list[Path]]]) -> str:
    """A fingerprint of what a curate stage reads: names and contents."""
    return sha256_json([[f.name, sha256_file(f)] for _, files in groups for f in files])
