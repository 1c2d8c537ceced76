"""Checkpoints: one folder per step, complete or absent, checked at load, no pickle.

    steps/00000500/
        rank-00000.safetensors    parameters as `model/NAME`, optimizer state as
                                  `optimizer/NAME/exp_avg`: by name, never by index; one such file
                                  of each process, with the parts that it wrote
        state.json                the consumed step and whatever the trainer adds
        manifest.json             for every tensor its global shape, dtype and slices; for every
                                  file its size and sha256; version of the code; number of
                                  processes and how they shared the work; fingerprints
        manifest.sha256           the sha256 of the manifest itself

A folder is written under a hidden name, its files synced, then the manifest, then the folder is
renamed and its parent synced: a crash at any point leaves the older checkpoints and nothing that
looks complete. A folder of the same step, put there by hand, is set aside under a hidden name until
the new one is durable. The newest checkpoint is found by looking, never by a pointer that could
dangle. The loader assembles each tensor from whatever slices the files hold, so neither the number
of processes that wrote a checkpoint nor how they shared its tensors matters to those that read it.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stemma.core.distributed import ALONE, World
from stemma.core.errors import ModelError, UsageError
from stemma.core.files import resource_error, sha256_file
from stemma.train.reader import AGAIN, Reader
from stemma.train.rule import kept_states
from stemma.train.saving import FORMAT_VERSION, Save, write
from stemma.train.snapshot import take

STEP = re.compile(r"\d{8}")
ASIDE = re.compile(r"\.(\d{8})\.\d+\.aside")  # a step's folder while its successor is renamed
HASH = re.compile(rb"[0-9a-f]{64}")


@dataclass(frozen=True)
class Checkpoint:
    """A complete, verified checkpoint."""

    folder: Path
    manifest: dict[str, Any]
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps consumed when it was written."""
        return int(self.state["step"])


def named_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything a step changes, by name. Tied parameters appear once, as in the model."""
    tensors = {f"model/{name}": tensor.detach() for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{name}/{key}"] = torch.as_tensor(value).detach()
    return tensors


def save_checkpoint(
    steps_folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    fingerprints: dict[str, str],
    *,
    world: World = ALONE,
    parallel: dict[str, Any] | None = None,
    more: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write the checkpoint of `state["step"]`; raises ResourceError, leaving older ones intact.

    In a group every process calls this. `more` are further tensors by their names; `parallel`
    describes how the processes share the work. Raises DivergedError, writing nothing, where a value
    is not finite, and UsageError where the processes' tensors do not fit together.
    """
    snapshot = take({**named_state(model, optimizer), **(more or {})}, world)
    save = Save(steps_folder, state, fingerprints, parallel or {})
    return write(snapshot, save, world)


def state_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """About how many bytes the next checkpoint will have, its optimizer state included.

    Before the first step there is no state yet: what the optimizer will keep is counted.
    """
    size = sum(int(tensor.nbytes) for tensor in named_state(model, optimizer).values())
    if optimizer.state:
        return size
    states = kept_states(optimizer).values()
    return size + sum(int(value.nbytes) for state in states for value in state.values())


def open_checkpoint(folder: Path, *, verify: bool = True) -> Checkpoint:
    """Verify a checkpoint against its manifest, and that against its hash.

    Without `verify` the files it names are taken for sound, since another process has read them.
    Raises ModelError naming the file at fault, UsageError for a format of a later version.
    """
    try:
        manifest = read_manifest(folder)
        if manifest["format_version"] > FORMAT_VERSION:
            found = f"format {manifest['format_version']} is newer than this version knows"
            raise UsageError(found, place=folder, fix="update stemma-lm")
        for name, wanted in manifest["files"].items():
            path = folder / Path(name).name
            size = path.stat().st_size
            if size != wanted["bytes"]:
                what = f"{wanted['bytes']} bytes wanted, {size} found"
                raise ModelError(what, place=path, fix=AGAIN)
            if verify and sha256_file(path) != wanted["sha256"]:
                raise ModelError("the content does not match its sha256", place=path, fix=AGAIN)
        state = json.loads((folder / "state.json").read_text("utf-8"))
        steps = {int(state["step"]), int(manifest["step"])}
        if STEP.fullmatch(folder.name) and steps != {int(folder.name)}:
            what = f"holds step {state['step']}, which is not the step of its name"
            raise ModelError(what, place=folder, fix=AGAIN)
    except FileNotFoundError as error:
        what = "the file is missing from the checkpoint"
        raise ModelError(what, place=error.filename, fix=AGAIN) from error
    except OSError as error:  # the machine refuses to read: that is no damage
        raise resource_error(error, folder) from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, ModelError | UsageError):
            raise
        what = f"not a complete checkpoint ({error})"
        raise ModelError(what, place=folder, fix=AGAIN) from error
    return Checkpoint(folder, manifest, state)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, if its hash is right; else ModelError names the file that must be wrong.

    Where both may be, it names both.
    """
    path, beside = folder / "manifest.json", folder / "manifest.sha256"
    found, wanted = sha256_file(path).encode(), beside.read_bytes()
    if not HASH.fullmatch(wanted):
        raise ModelError("not a sha256 (64 hexadecimal digits)", place=beside, fix=AGAIN)
    if found != wanted:
        raise ModelError(f"does not agree with {beside.name}", place=path, fix=AGAIN)
    manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return manifest


def checkpoints(steps_folder: Path) -> list[Path]:
    """Folders of checkpoints, oldest first; hidden leftovers of a crash are not among them."""
    if not steps_folder.is_dir():
        return []
    return sorted(f for f in steps_folder.iterdir() if f.is_dir() and STEP.fullmatch(f.name))


def newest_checkpoint(
    steps_folder: Path, *, world: World = ALONE
) -> tuple[Checkpoint | None, list[ModelError]]:
    """The newest checkpoint that verifies, and what was wrong with newer ones passed over.

    Those are renamed to `STEP.damaged`: they no longer count, for retention neither. In a group
    every process calls this; the leader looks, and the others take what it found for sound.
    """
    if world.size == 1:
        return newest_sound(steps_folder)

    def look() -> dict[str, Any]:
        found, damaged = newest_sound(steps_folder)
        told = [(one.what, one.place, one.fix) for one in damaged]
        return {"name": found.folder.name if found else "", "damaged": told}

    said = world.told(look)
    damaged = [ModelError(what, place=place, fix=fix) for what, place, fix in said["damaged"]]
    folder = steps_folder / said["name"]
    return (open_checkpoint(folder, verify=False) if said["name"] else None), damaged


def newest_sound(steps_folder: Path) -> tuple[Checkpoint | None, list[ModelError]]:
    """What one process finds; see `newest_checkpoint`."""
    damaged: list[ModelError] = []
    for folder in reversed(checkpoints(steps_folder)):
        try:
            return open_checkpoint(folder), damaged
        except ModelError as error:
            damaged.append(error)
            aside = folder.with_name(f"{folder.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
    return None, damaged


def read_tensor(
    checkpoint: Checkpoint, name: str, *, start: list[int] | None = None, shape: Any = None
) -> Tensor:
    """Assemble one tensor, or the box of it at `start` with `shape`, from the slices on disk.

    Raises ModelError where the slices do not cover the box.
    """
    return Reader(checkpoint.folder, checkpoint.manifest).read(name, start=start, shape=shape)


@torch.no_grad()
def restore(
    checkpoint: Checkpoint,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    *,
    whole: bool = True,
) -> None:
    """Put a checkpoint back, every tensor accounted for. Raises ModelError for any that differ.

    Of a DTensor the part of this process is read, and no more. Where `whole` is False the model is
    a part of what was saved, as one stage of a pipeline is, and may leave tensors unread.
    """
    reader = Reader(checkpoint.folder, checkpoint.manifest)
    names = checkpoint.manifest["tensors"].keys()
    targets = model.state_dict()
    stored = {name.removeprefix("model/") for name in names if name.startswith("model/")}
    if not whole:
        stored &= targets.keys()
    if stored != targets.keys():
        missing, unused = sorted(targets.keys() - stored)[:5], sorted(stored - targets.keys())[:5]
        what = f"checkpoint of another model: missing {missing}, unused {unused}"
        raise ModelError(what, place=checkpoint.folder, fix=AGAIN)
    for name, target in targets.items():
        reader.fill(f"model/{name}", target)
    if optimizer is None:
        return
    for name, keys in optimizer_keys(checkpoint, model, optimizer, whole=whole).items():
        parameter = model.get_parameter(name)
        optimizer.state[parameter] = {
            key: reader.read_like(f"optimizer/{name}/{key}", parameter) for key in keys
        }


def optimizer_keys(
    checkpoint: Checkpoint,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    whole: bool = True,
) -> dict[str, list[str]]:
    """The stored optimizer state by parameter: all that the optimizer keeps, or none of any.

    Raises ModelError where a parameter has other keys, or values of another shape or type.
    """
    stored: dict[str, dict[str, Any]] = {}
    for name, about in checkpoint.manifest["tensors"].items():
        if name.startswith("optimizer/"):
            parameter, _, key = name.removeprefix("optimizer/").rpartition("/")
            stored.setdefault(parameter, {})[key] = (list(about["shape"]), about["dtype"])
    kept, wanted = kept_states(optimizer), dict[str, Any]()
    for name, one in model.named_parameters():
        if one in kept:
            wanted[name] = {key: form_of(value) for key, value in kept[one].items()}
        elif one.requires_grad:  # of an optimizer that does not tell: taken as it is
            wanted[name] = stored.get(name)
    if not whole:
        stored = {name: keys for name, keys in stored.items() if name in wanted}
    if stored and stored != wanted:
        odd = [n for n in {**wanted, **stored} if stored.get(n) != wanted.get(n)]
        what = f"the optimizer state does not fit the model and optimizer: {sorted(odd)[:5]}"
        raise ModelError(what, place=checkpoint.folder, fix=AGAIN)
    return {name: list(keys) for name, keys in stored.items()}


def form_of(tensor: Tensor) -> tuple[list[int], str]:
    """Shape and type as a manifest has them."""
    return list(tensor.shape), str(tensor.dtype).removeprefix("torch.")


def retain(steps_folder: Path, *, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints and the best, and what crashes left behind.

    Removing is the last thing a save does; a failure here harms nothing and is not an error. What
    goes is renamed first, so that no half of it is ever taken for a checkpoint.
    """
    folders = checkpoints(steps_folder)
    kept = {best_checkpoint(folders), *folders[-max(1, keep) :]}
    for folder in [folder for folder in folders if folder not in kept]:
        gone = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        with suppress(OSError):
            folder.rename(gone)
            shutil.rmtree(gone)
    clear_leftovers(steps_folder)


def best_checkpoint(folders: list[Path]) -> Path | None:
    """The checkpoint with the lowest held-out score of its step; None where none was measured."""
    scored = [(score, folder) for folder in folders if (score := heldout_score(folder)) is not None]
    return min(scored)[1] if scored else None


def heldout_score(folder: Path) -> float | None:
    """The score that a checkpoint's state tells; None where it has none or cannot be read."""
    try:
        score = json.loads((folder / "state.json").read_text("utf-8")).get("heldout")
        return None if score is None else float(score)
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def clear_leftovers(steps_folder: Path) -> None:
    """Remove hidden folders that a crash in the middle of a save left.

    A checkpoint that was set aside comes back where its successor had not come into its place.
    """
    if not steps_folder.is_dir():
        return
    for leftover in sorted(steps_folder.glob(".*")):
        found = ASIDE.fullmatch(leftover.name)
        if found and not (steps_folder / found[1]).exists():
            leftover.rename(steps_folder / found[1])
        elif found or leftover.name.endswith(".partial"):
            shutil.rmtree(leftover, ignore_errors=True)
