"""The saves of a training run: at once, or in a thread while training goes on.

A save in the background copies what it is to write and returns; writing, syncing and letting old
checkpoints go is the thread's work. One save at most is under way: the next waits for it. What goes
wrong is told at the end of the next step, and at the latest by `wait`. So a run that was killed may
have lost the newest save, and never one that another had followed.
"""

import copy
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from stemma.core.config import StrictModel
from stemma.core.distributed import ALONE, World
from stemma.core.errors import ResourceError
from stemma.core.progress import LOG
from stemma.train.checkpoint import named_state, retain
from stemma.train.saving import Save, write
from stemma.train.snapshot import Snapshot, take

AT_MOST = 10.0  # seconds that leaving now waits for a thread that was told to end


class Abandoned(Exception):
    """The process is leaving now: a save under way ends and takes back what it wrote."""


class Saving(StrictModel):
    """How checkpoints are saved."""

    background: bool = Field(
        default=False, description="train on while a checkpoint is written from a copy in memory"
    )
    on_error: Literal["stop", "warn"] = Field(
        default="stop", description="where the disk refuses: stop, or warn and train on without"
    )


class Saver:
    """Saves under one folder; a context that does not end before the save under way has.

    In a group every process has one, and saves at the same steps. There an error is told only by
    the next `save` and by `wait`, at which all processes learn of it together.
    """

    def __init__(
        self,
        steps_folder: Path,
        saving: Saving,
        *,
        keep: int = 2,
        world: World = ALONE,
    ) -> None:
        self.steps_folder, self.saving, self.keep = steps_folder, saving, keep
        self.world = world.apart() if saving.background else world
        self._buffers: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._done, self._left = threading.Event(), threading.Event()
        self._error: Exception | None = None
        self._refused: ResourceError | None = None  # of the newest save, if training went on

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
        fingerprints: dict[str, str],
        *,
        parallel: dict[str, Any] | None = None,
        more: Mapping[str, Tensor] | None = None,
        first: Callable[[], None] = lambda: None,
    ) -> None:
        """Save the step, when the save before has ended; raises what `save_checkpoint` does.

        `first` makes durable what the checkpoint counts on, just before it is written.
        """
        self.wait()
        state = copy.deepcopy(state)  # training goes on, and what it counts moves with it
        tensors = {**named_state(model, optimizer), **(more or {})}
        snapshot = take(tensors, self.world, self._buffers if self.saving.background else None)
        save = Save(self.steps_folder, state, fingerprints, parallel or {}, first, self._pause)
        self._refused, self._error = None, None
        self._done.clear()
        if not self.saving.background:
            self._write(snapshot, save)
            self.wait()
            return
        self._thread = threading.Thread(
            target=self._write, args=(snapshot, save), name="stemma-save", daemon=True
        )
        self._thread.start()

    def check(self) -> None:
        """Raise what a save that has ended raised. For the end of each step; never waits."""
        if self.world.size == 1 and self._done.is_set():
            self.wait()

    def wait(self) -> None:
        """Wait for the save under way, and raise what it raised."""
        if self._thread is not None:
            self._done.wait()  # a signal is heeded meanwhile, as it is not in a join
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if isinstance(error, ResourceError) and self.saving.on_error == "warn":
            LOG.warning("not saved, and training goes on: %s", error)
            self._refused = error
        elif error is not None:
            raise error

    def require(self) -> None:
        """Wait, and raise why the newest step is not saved, also where training goes on without."""
        self.wait()
        if self._refused is not None:
            raise self._refused

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let the save under way end; where the process is leaving now, end it."""
        if kind is None:
            self.wait()
        elif issubclass(kind, Exception):
            try:
                self.wait()
            except Exception as other:  # what ended training is what is told
                LOG.warning("nor was the newest step saved: %s", other)
        elif self._thread is not None:
            self._left.set()
            self._thread.join(AT_MOST)

    def _write(self, snapshot: Snapshot, save: Save) -> None:
        try:
            write(snapshot, save, self.world)
            if self.world.leads:
                retain(self.steps_folder, keep=self.keep)
        except Exception as error:
            self._error = error
        finally:
            self._done.set()

    def _pause(self) -> None:
        if self._left.is_set():
            raise Abandoned
