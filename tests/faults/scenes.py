"""What a forked child plays: the real command, broken at a place; or a few saves and no command.

A scene takes keyword arguments from the job's JSON. It arms the shim itself, at the place where
counting is to begin; a job without a fault counts and traces nothing.
"""

import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stemma import cli
from stemma.core.errors import StemmaError
from stemma.models import llama
from stemma.nn.initial import initialise
from stemma.pipeline import training
from stemma.train import checkpoint
from stemma.train.optimizer import AdamW, adamw
from tests.faults import shim


def play(job: dict[str, Any]) -> None:
    """Play one job's scene to its end."""
    log, fault = Path(job["log"]), job["fault"]
    trace = os.open(log / "trace", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def arm(folder: Path) -> None:
        if fault is not None:
            shim.arm(folder, fault, trace)

    SCENES[job["scene"]](log, arm, **job["arguments"])


def command(
    log: Path,
    arm: Callable[[Path], None],
    *,
    argv: list[str],
    at: str = "start",
    number: int = 1,
    act: str = "arm",
    amount: int = 0,
) -> None:
    """Run `stemma ARGV`; at a place (`start`, `save`, `loss`), the `number`-th time, act.

    Counting ends with the save where it began in one.
    """
    acts = {
        "arm": lambda: arm(Path()),
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "hold": lambda: hold(log),
        "limit": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (amount, amount)),
    }
    sys.argv = ["stemma", *argv]
    PLACES[at](number, acts[act])
    cli.main()


def hold(log: Path) -> None:
    """Stay here, with a beat now and then, until the test lets go or a signal does."""
    beat = os.open(log / "beat", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    while not (log / "go").exists():
        os.write(beat, b".")
        time.sleep(0.001)


def at_start(number: int, act: Callable[[], None]) -> None:
    """Before the command begins."""
    act()


def at_save(number: int, act: Callable[[], None]) -> None:
    """As a save begins, old checkpoints let go included."""
    real, seen = training.Training.save, 0

    def save(self: training.Training) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            act()
        real(self)
        shim.disarm()

    training.Training.save = save  # type: ignore[method-assign]


def at_loss(number: int, act: Callable[[], None]) -> None:
    """Before the loss of a micro-batch, in the middle of a step."""
    real, seen = training.train, 0

    def train(state: Any, loss_sum: Callable[..., Any], *occasions: Any, **more: Any) -> None:
        def loss(model: nn.Module, batch: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == number:
                act()
            return loss_sum(model, batch)

        real(state, loss, *occasions, **more)

    training.train = train


PLACES = {"start": at_start, "save": at_save, "loss": at_loss}


def small_state(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A tiny network with its optimizer after a step."""
    config = llama.LlamaConfig(width=8, depth=1, num_heads=2, vocab_size=11, context=8)
    model = llama.build(config)
    initialise(model, seed=0, std=0.1, depth=1)
    optimizer = adamw(model, AdamW(), learning_rate=1e-2)
    tokens = torch.randint(0, 11, (2, 8), generator=torch.Generator().manual_seed(seed))
    model(tokens).logsumexp(-1).mean().backward()
    optimizer.step()
    return model, optimizer


def save(folder: Path, step: int, keep: int = 2) -> Path:
    """A save as training makes it: the checkpoint, then retention."""
    model, optimizer = small_state(seed=step)
    path = checkpoint.save_checkpoint(folder, model, optimizer, {"step": step}, {"data": "a"})
    checkpoint.retain(folder, keep=keep)
    return path


def saves(
    log: Path,
    arm: Callable[[Path], None],
    *,
    steps: list[int],
    keep: int = 2,
    limit: int = 0,
) -> None:
    """Save one step after another; the shim is armed for the last of them.

    What a save raises ends the process as it ends the command.
    """
    folder = Path("steps")
    *before, last = steps
    for step in before:
        save(folder, step, keep)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    arm(Path())
    try:
        save(folder, last, keep)
    except StemmaError as error:
        shim.disarm()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def refusals(
    log: Path, arm: Callable[[Path], None], *, faults: list[dict[str, Any]], step: int
) -> None:
    """Save two steps, then try a third under one fault after another: a JSON line for each.

    The lines tell the error's kind and words, and what is then in the folder.
    """
    folder = Path("steps")
    before = (save(folder, step - 2), save(folder, step - 1))
    kept = {path: shutil.copytree(path, Path("kept") / path.name) for path in before}
    for fault in faults:
        row: dict[str, Any] = {"kind": "", "text": ""}
        shim.arm(folder, fault, -1)
        try:
            save(folder, step)
        except StemmaError as error:
            row = {"kind": type(error).__name__, "text": str(error)}
        shim.disarm()
        row |= {"met": shim.counted(), "names": sorted(path.name for path in folder.iterdir())}
        row["sound"] = [checkpoint.open_checkpoint(f).step for f in newest_two(folder)]
        print(json.dumps(row))
        shutil.rmtree(folder)
        folder.mkdir()
        for path, copy in kept.items():
            shutil.copytree(copy, path)


def newest_two(folder: Path) -> list[Path]:
    """The checkpoints that retention keeps."""
    return checkpoint.checkpoints(folder)[-2:]


def calls(log: Path, arm: Callable[[Path], None], *, script: str) -> None:
    """A script of system calls, for tests of the shim."""
    arm(Path())
    exec(script, {"os": os, "Path": Path})


SCENES: dict[str, Callable[..., None]] = {
    "command": command,
    "saves": saves,
    "refusals": refusals,
    "calls": calls,
}
