"""Checkpoints: one folder per step, complete or absent, checked at load, no pickle.

    steps/00000500/
        rank-00000.safetensors    parameters as `model/NAME`, optimizer state as
                                  `optimizer/NAME/exp_avg`: by name, never by index
        state.json                the consumed step and whatever the trainer adds
        manifest.json             for every tensor its global shape, dtype and slices; for every
                                  file its size and sha256; world size; fingerprints
        manifest.sha256           the sha256 of the manifest itself

A folder is written under a hidden name, its files synced, then the manifest, then the folder is
renamed and its parent synced: a crash at any point leaves the older checkpoints and nothing that
looks complete. A folder of the same step, put there by hand, is set aside under a hidden name until
the new one is durable. The newest checkpoint is found by looking, never by a pointer that could
dangle. The loader assembles each tensor from whatever slices the files hold, so the number of
processes that wrote a checkpoint does not matter to those that read it.
"""

import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from stemma.core.errors import DivergedError, ModelError, UsageError
from stemma.core.files import make_folder, resource_error, sha256_file, sync_folder

FORMAT_VERSION = 1
STEP = re.compile(r"\d{8}")
ASIDE = re.compile(r"\.(\d{8})\.\d+\.aside")  # a step's folder while its successor is renamed
HASH = re.compile(rb"[0-9a-f]{64}")
AGAIN = "remove this checkpoint to go on from an older one"


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


def write_synced(path: Path, content: bytes) -> dict[str, Any]:
    """Write and sync one file of a folder that is still hidden; returns its manifest entry."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(content), "sha256": sha256_file(path)}


def save_checkpoint(
    steps_folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    fingerprints: dict[str, str],
) -> Path:
    """Write the checkpoint of `state["step"]`; raises ResourceError, leaving older ones intact.

    Raises DivergedError, writing nothing, where a value of the state is not finite.
    """
    tensors = {
        name: tensor.to("cpu", copy=True).contiguous()
        for name, tensor in named_state(model, optimizer).items()
    }
    require_finite(tensors, state["step"])
    final = steps_folder / f"{state['step']:08d}"
    partial = steps_folder / f".{final.name}.{os.getpid()}.partial"
    aside = steps_folder / f".{final.name}.{os.getpid()}.aside"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        make_folder(steps_folder)
        partial.mkdir()
        shard = "rank-00000.safetensors"
        files = {
            shard: write_synced(partial / shard, save(tensors)),
            "state.json": write_synced(partial / "state.json", json_bytes(state)),
        }
        manifest = {
            "format_version": FORMAT_VERSION,
            "step": state["step"],
            "world_size": 1,
            "fingerprints": fingerprints,
            "tensors": {name: entry(tensor, shard) for name, tensor in tensors.items()},
            "files": files,
        }
        about = write_synced(partial / "manifest.json", json_bytes(manifest))
        write_synced(partial / "manifest.sha256", about["sha256"].encode())
        sync_folder(partial)
        if final.exists():
            os.replace(final, aside)
        os.replace(partial, final)
        sync_folder(steps_folder)
        shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        written = sum(file.stat().st_size for file in partial.glob("*"))
        shutil.rmtree(partial, ignore_errors=True)
        if aside.exists() and not final.exists():
            with suppress(OSError):  # else the next start brings it back
                os.replace(aside, final)
        raise resource_error(error, final, written=written) from error
    return final


def require_finite(tensors: dict[str, Tensor], step: int) -> None:
    """Refuse to write a state that no training can go on from (DivergedError)."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            what = f"after step {step} values of {name} are not finite"
            raise DivergedError(what, fix="lower learning_rate, or lengthen the warm-up")


def state_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """About how many bytes the next checkpoint will have, its optimizer state included.

    Before the first step there is no state yet: two values are counted for each that is trained.
    """
    size = sum(int(tensor.nbytes) for tensor in named_state(model, optimizer).values())
    if optimizer.state:
        return size
    trained = (p for group in optimizer.param_groups for p in group["params"])
    return size + 2 * sum(int(parameter.nbytes) for parameter in trained)


def json_bytes(value: Any) -> bytes:
    """JSON as the files of a checkpoint spell it."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def entry(tensor: Tensor, file: str) -> dict[str, Any]:
    """A tensor's line in the manifest: here one slice, the whole."""
    shape = list(tensor.shape)
    whole = {"file": file, "start": [0] * len(shape), "shape": shape}
    return {"shape": shape, "dtype": str(tensor.dtype).removeprefix("torch."), "slices": [whole]}


def open_checkpoint(folder: Path) -> Checkpoint:
    """Verify a checkpoint against its manifest, and that against its hash.

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
            if sha256_file(path) != wanted["sha256"]:
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


def newest_checkpoint(steps_folder: Path) -> tuple[Checkpoint | None, list[ModelError]]:
    """The newest checkpoint that verifies, and what was wrong with newer ones passed over.

    Those are renamed to `STEP.damaged`: they no longer count, for retention neither.
    """
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


def overlap(
    start: list[int], shape: list[int], other: list[int], other_shape: list[int]
) -> list[tuple[int, int]] | None:
    """Where two boxes meet, as (from, to) per axis in global coordinates; None where they don't."""
    ranges = [
        (max(a, b), min(a + n, b + m))
        for a, n, b, m in zip(start, shape, other, other_shape, strict=True)
    ]
    return None if any(low >= high for low, high in ranges) else ranges


def read_tensor(
    checkpoint: Checkpoint, name: str, *, start: list[int] | None = None, shape: Any = None
) -> Tensor:
    """Assemble one tensor, or the box of it at `start` with `shape`, from the slices on disk.

    Raises ModelError where the slices do not cover the box.
    """
    about = checkpoint.manifest["tensors"].get(name)
    if about is None:
        raise ModelError("tensor is missing", place=f"{checkpoint.folder}: {name}", fix=AGAIN)
    start, shape = start or [0] * len(about["shape"]), shape or about["shape"]
    result = torch.empty(shape, dtype=getattr(torch, about["dtype"]))
    filled = torch.zeros(shape, dtype=torch.bool)
    for piece in about["slices"]:
        box = overlap(start, shape, piece["start"], piece["shape"])
        if box is None:
            continue
        if piece["file"] not in checkpoint.manifest["files"]:
            what = f"lies in {piece['file']!r:.60}, which the manifest does not vouch for"
            raise ModelError(what, place=f"{checkpoint.folder}: {name}", fix=AGAIN)
        with safe_open(checkpoint.folder / piece["file"], framework="pt") as file:
            part = file.get_tensor(name)
        there = tuple(slice(a - o, b - o) for (a, b), o in zip(box, piece["start"], strict=True))
        here = tuple(slice(a - o, b - o) for (a, b), o in zip(box, start, strict=True))
        result[here] = part[there]
        filled[here] = True
    if not filled.all():
        what = f"slices cover {int(filled.sum())} of {result.numel()} values"
        raise ModelError(what, place=f"{checkpoint.folder}: {name}", fix=AGAIN)
    return result


@torch.no_grad()
def restore(
    checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer | None
) -> None:
    """Put a checkpoint back, every tensor accounted for. Raises ModelError for any that differ."""
    names = checkpoint.manifest["tensors"].keys()
    targets = model.state_dict()
    stored = {name.removeprefix("model/") for name in names if name.startswith("model/")}
    if stored != targets.keys():
        missing, unused = sorted(targets.keys() - stored)[:5], sorted(stored - targets.keys())[:5]
        what = f"checkpoint of another model: missing {missing}, unused {unused}"
        raise ModelError(what, place=checkpoint.folder, fix=AGAIN)
    for name, target in targets.items():
        tensor = read_tensor(checkpoint, f"model/{name}")
        if tensor.shape != target.shape:
            what = f"shape {list(tensor.shape)} stored, {list(target.shape)} wanted"
            raise ModelError(what, place=f"{checkpoint.folder}: {name}", fix=AGAIN)
        target.copy_(tensor)
    if optimizer is None:
        return
    for name, keys in optimizer_keys(checkpoint, model).items():
        parameter = model.get_parameter(name)
        optimizer.state[parameter] = {
            # on the parameter's device, the step count too: the fused kernel wants it there
            key: read_tensor(checkpoint, f"optimizer/{name}/{key}").to(parameter.device)
            for key in keys
        }


def optimizer_keys(checkpoint: Checkpoint, model: nn.Module) -> dict[str, list[str]]:
    """The stored optimizer state by parameter: of every trainable one alike, or of none at all.

    Raises ModelError where a parameter has none, or other keys than the rest.
    """
    stored: dict[str, list[str]] = {}
    for name in checkpoint.manifest["tensors"]:
        if name.startswith("optimizer/"):
            parameter, _, key = name.removeprefix("optimizer/").rpartition("/")
            stored.setdefault(parameter, []).append(key)
    wanted = {name for name, p in model.named_parameters() if p.requires_grad}
    kinds = {tuple(sorted(keys)) for keys in stored.values()}
    if stored and (stored.keys() != wanted or len(kinds) != 1):
        odd = sorted(stored.keys() ^ wanted)[:5] or "some parameters have other keys"
        what = f"the optimizer state does not fit the model: {odd}"
        raise ModelError(what, place=checkpoint.folder, fix=AGAIN)
    return stored


def retain(steps_folder: Path, *, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what crashes left behind.

    Removing is the last thing a save does; a failure here harms nothing and is not an error. What
    goes is renamed first, so that no half of it is ever taken for a checkpoint.
    """
    for folder in checkpoints(steps_folder)[: -max(1, keep)]:
        gone = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        with suppress(OSError):
            folder.rename(gone)
            shutil.rmtree(gone)
    clear_leftovers(steps_folder)


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
