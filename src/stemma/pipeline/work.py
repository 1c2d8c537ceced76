"""What a stage is given to work with: its folder, its seed, its inputs, and how to say things."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stemma import api
from stemma.core import assets
from stemma.core.errors import UsageError
from stemma.core.files import sha256_file, sha256_json
from stemma.core.progress import progress
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
            raise UsageError(
                "the model has no tokenizer", place=reference, fix="add tokenizer.json"
            )
        return model, tokenizer


def outside_model(reference: str, root: Path, *, out: Path) -> Input:
    """Resolve a model that no stage made: `asset:NAME`, or a path."""
    if reference.startswith("asset:"):
        return Input(pulled(reference), asset_fingerprint(reference))
    path = own_path(reference, root, out=out)
    if not path.exists():
        raise UsageError("no such model", place=reference, fix="check the path")
    files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
    return Input(path, file_hashes(files))


def pulled(reference: str) -> Path:
    """The folder of `asset:NAME`, fetched with a progress bar where it is not there yet."""
    asset = assets.find(reference.removeprefix("asset:"))
    if (folder := assets.pulled(asset.name)) is not None:
        return folder
    with progress(f"pull {asset.name}", asset.bytes or 1) as update:
        return assets.pull(asset.name, on_progress=update)


def asset_fingerprint(reference: str) -> str:
    """What an asset holds, told by the catalogue where its hash is pinned: nothing is fetched."""
    asset = assets.find(reference.removeprefix("asset:"))
    if asset.sha256:
        return sha256_json([asset.sha256, list(asset.files)])
    return file_hashes(sorted(f for f in pulled(reference).rglob("*") if f.is_file()))


def documents_fingerprint(references: tuple[str, ...], root: Path, *, out: Path) -> str:
    """What a curate stage would read: contents of files, hashes of assets."""
    parts = []
    for reference in references:
        if reference.startswith("asset:"):
            parts.append(asset_fingerprint(reference))
        else:
            parts.append(file_hashes(own_files(reference, root, out=out)[1]))
    return sha256_json(parts)


def document_files(
    references: tuple[str, ...], root: Path, *, out: Path
) -> list[tuple[Path, list[Path]]]:
    """The files that a curate stage reads, each with the folder its name is told from.

    Assets are pulled, folders and globs walked, a file named twice is read once.
    """
    seen: set[Path] = set()
    groups = []
    for reference in references:
        if reference.startswith("asset:"):
            inside = pulled(reference)
            files = find_files([str(inside)], inside)
        else:
            inside, files = own_files(reference, root, out=out)
        fresh = [f for f in files if f.resolve() not in seen]
        seen |= {f.resolve() for f in fresh}
        groups.append((inside, fresh))
    return [(inside, files) for inside, files in groups if files]


def own_path(reference: str, root: Path, *, out: Path) -> Path:
    """A path seen from the recipe; the run folder itself is no input (UsageError)."""
    path = (root / Path(reference).expanduser()).absolute()
    if path.exists() and path.resolve().is_relative_to(out.resolve()):
        what = f"the input lies in the run folder {out}"
        raise UsageError(what, place=reference, fix="choose another folder with out=")
    return path


def own_files(reference: str, root: Path, *, out: Path) -> tuple[Path, list[Path]]:
    """Files of a folder, file or glob. A run folder below it is left out.

    Raises UsageError where nothing is left, and what `find_files` raises.
    """
    path = own_path(reference, root, out=out)
    inside = path if path.is_dir() else root.absolute()
    found = find_files([str(path)], inside)
    files = [f for f in found if not f.resolve().is_relative_to(out.resolve())]
    if not files:
        what = f"all of the input lies in the run folder {out}"
        raise UsageError(what, place=reference, fix="choose another folder with out=")
    return inside, files


def file_hashes(files: list[Path]) -> str:
    """Names and contents of files, as one hash."""
    return sha256_json([[f.name, sha256_file(f)] for f in files])
