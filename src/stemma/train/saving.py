"""Writes a checkpoint's folder, alone or with other processes: whole, or not at all.

Processes that save together see one folder. The first of them, the leader, makes it under a hidden
name; each writes and syncs its own file; when all have, the leader writes what there is once,
renames the folder and syncs its parent. Each of these phases ends when every process has ended it,
and where one fails, all leave with its error.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from stemma.core.distributed import ALONE, World, together
from stemma.core.files import make_folder, resource_error, sync_folder
from stemma.train.shard import shard_name, write_shard, write_synced
from stemma.train.snapshot import Snapshot, require_finite

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Save:
    """What a save needs besides the tensors: where it goes, and what its JSON files tell."""

    steps_folder: Path
    state: dict[str, Any]
    fingerprints: dict[str, str]
    parallel: dict[str, Any] = field(default_factory=dict)  # how processes share the work
    first: Callable[[], None] = lambda: None  # makes durable what this checkpoint counts on
    pause: Callable[[], None] = lambda: None  # called now and then; what it raises ends the save

    @property
    def final(self) -> Path:
        """The folder of this step."""
        return self.steps_folder / f"{self.state['step']:08d}"

    def hidden(self, process: int, ending: str) -> Path:
        """A hidden folder of this step, named for the process that made it."""
        return self.steps_folder / f".{self.final.name}.{process}.{ending}"


def write(snapshot: Snapshot, save: Save, world: World = ALONE) -> Path:
    """Write what was taken at the end of a step; returns the checkpoint's folder.

    Raises DivergedError, writing nothing, where a value is not finite, and ResourceError where the
    machine refuses: then older checkpoints are there as before, and nothing of this one.
    """
    try:
        process = together(world, lambda: begin(snapshot, save, world))[0]
        partial = save.hidden(process, "partial")
        every = together(world, lambda: write_own(partial, snapshot, save, world))
        files = {name: about for one in every for name, about in one.items()}
        together(world, lambda: commit(partial, snapshot, save, files) if world.leads else None)
    except Exception:
        if world.leads:
            give_up(save)
        raise
    if world.leads:
        shutil.rmtree(save.hidden(process, "aside"), ignore_errors=True)
    return save.final


def begin(snapshot: Snapshot, save: Save, world: World) -> int:
    """Look at the values, and make the hidden folder; returns the process it is named for."""
    require_finite(snapshot.tensors, save.state["step"])
    process = os.getpid()
    partial = save.hidden(process, "partial")
    with refusals(save, partial, partial):
        save.first()
        if world.leads:
            shutil.rmtree(partial, ignore_errors=True)
            make_folder(save.steps_folder)
            partial.mkdir()
    return process


def write_own(
    partial: Path, snapshot: Snapshot, save: Save, world: World
) -> dict[str, dict[str, Any]]:
    """Write this process's file; returns its entry in the manifest."""
    name = shard_name(world.rank)
    # others may still write into the folder: who fails in a group takes back its own file alone
    with refusals(save, partial, partial if world.size == 1 else partial / name):
        return {name: write_shard(partial / name, snapshot.tensors, pause=save.pause)}


def commit(partial: Path, snapshot: Snapshot, save: Save, files: dict[str, Any]) -> None:
    """Write what a checkpoint has once, and put it in its place."""
    with refusals(save, partial, partial):
        about = write_synced(partial / "state.json", [json_bytes(save.state)])
        manifest = {
            "format_version": FORMAT_VERSION,
            "step": save.state["step"],
            "world_size": len(files),
            "code_version": metadata.version("stemma-lm"),
            "parallel": save.parallel,
            "fingerprints": save.fingerprints,
            "tensors": snapshot.entries,
            "files": {**files, "state.json": about},
        }
        hashed = write_synced(partial / "manifest.json", [json_bytes(manifest)])
        write_synced(partial / "manifest.sha256", [hashed["sha256"].encode()])
        sync_folder(partial)
        if save.final.exists():
            os.replace(save.final, save.hidden(os.getpid(), "aside"))
        os.replace(partial, save.final)
        sync_folder(save.steps_folder)


def give_up(save: Save) -> None:
    """Leave nothing of a save that failed; called by the leader, whose folders these are."""
    shutil.rmtree(save.hidden(os.getpid(), "partial"), ignore_errors=True)
    aside = save.hidden(os.getpid(), "aside")
    if aside.exists() and not save.final.exists():
        with suppress(OSError):  # else the next start brings it back
            os.replace(aside, save.final)


@contextmanager
def refusals(save: Save, partial: Path, own: Path) -> Iterator[None]:
    """Tell of a refusal of the machine in one line, `own` removed before: it says what is free."""
    try:
        yield
    except OSError as error:
        written = sum(file.stat().st_size for file in partial.glob("*"))
        shutil.rmtree(own, ignore_errors=True)
        with suppress(OSError):
            own.unlink()
        raise resource_error(error, save.final, written=written) from error


def json_bytes(value: Any) -> bytes:
    """JSON as the files of a checkpoint spell it."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()
