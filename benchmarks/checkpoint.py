"""Checkpoints beside torch.distributed.checkpoint: how fast they are written, how long steps wait.

    python -m benchmarks.checkpoint [--quick] [--tiny] [--out FOLDER]

The network is a GPT-2 (6 layers, width 384, vocabulary 4,096) with the state of AdamW: 147 MB.
Ours syncs every file and folder and hashes all of it; the peer writes the same tensors in its own
form for one process, syncs its data, and hashes nothing.

- save: megabytes a second until the call returns; the aim is 300.
- stall: what a save in the background costs training, in steps: the time that the call takes, and
  what the next steps take longer while it is written. The aim for the call is 0.05 of a step.
"""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed.checkpoint as peer
from torch import nn

from benchmarks.pairs import by_turns, line, say, seconds, tell
from stemma import api
from stemma.train.checkpoint import named_state, save_checkpoint, state_bytes
from stemma.train.optimizer import AdamW, optimizer_for
from stemma.train.saver import Saver, Saving

PEER = "torch.distributed.checkpoint"
INTERVAL = 500  # steps between checkpoints, where a recipe says nothing
SIZES = {
    "full": {"width": 384, "depth": 6, "num_heads": 6, "vocab_size": 4096, "context": 256},
    "tiny": {"width": 32, "depth": 1, "num_heads": 2, "vocab_size": 64, "context": 16},
}
ROWS = 16
STEPS = 2  # during which a save is written


class Bench:
    """A network in training, and a folder for what is saved of it."""

    def __init__(self, numbers: dict[str, int], folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.model: nn.Module = api.build("gpt2", seed=0, **numbers)
        self.optimizer = optimizer_for(self.model, AdamW(), learning_rate=1e-4)
        draw = torch.Generator().manual_seed(0)
        shape = (ROWS, numbers["context"])
        self.tokens_BT = torch.randint(numbers["vocab_size"], shape, generator=draw)
        self.step()

    def step(self) -> None:
        """One step of training."""
        self.optimizer.zero_grad()
        logits_BTV = self.model(self.tokens_BT)[:, :-1]
        loss = nn.functional.cross_entropy(
            logits_BTV.flatten(0, 1), self.tokens_BT[:, 1:].flatten()
        )
        loss.backward()
        self.optimizer.step()

    def steps(self, count: int) -> None:
        """Several steps."""
        for _ in range(count):
            self.step()

    def state(self) -> dict[str, torch.Tensor]:
        """All that is saved, by name."""
        return named_state(self.model, self.optimizer)

    def fresh(self) -> dict[str, Any]:
        """An empty folder, and the state of the next save."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.count += 1
        return {"step": self.count}


def saves(bench: Bench, pairs: int) -> dict[str, Any]:
    """Megabytes a second of both."""
    megabytes = state_bytes(bench.model, bench.optimizer) / 1e6

    def ours() -> float:
        state = bench.fresh()
        taken = seconds(
            lambda: save_checkpoint(bench.folder, bench.model, bench.optimizer, state, {})
        )
        return megabytes / taken

    def theirs() -> float:
        bench.fresh()
        place = bench.folder / "peer"
        return megabytes / seconds(
            lambda: peer.save(bench.state(), checkpoint_id=place, no_dist=True)
        )

    ours(), theirs()  # files and libraries are met for the first time
    found = by_turns(ours, theirs, pairs)
    return line("checkpoint", f"{PEER} save", "MB/s", found, more=True)


def stall(bench: Bench, begin: Callable[[], Callable[[], Any]], step_seconds: float) -> list[float]:
    """What a background save costs, in steps: the call alone, and all until it has ended."""
    bench.fresh()
    end: list[Callable[[], Any]] = []
    called = seconds(lambda: end.append(begin()))
    rest = seconds(lambda: bench.steps(STEPS)) + seconds(end[0])
    return [called / step_seconds, (called + rest) / step_seconds - STEPS]


def stalls(bench: Bench, pairs: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The stall of both, as shares of a step; and a step's seconds."""
    step_seconds = median(seconds(bench.step) for _ in range(3))
    saver = Saver(bench.folder, Saving(background=True))

    def ours() -> Callable[[], Any]:
        saver.save(bench.model, bench.optimizer, {"step": bench.count}, {})
        return saver.wait

    def theirs() -> Callable[[], Any]:
        future: Any = peer.async_save(
            bench.state(), checkpoint_id=bench.folder / "peer", no_dist=True
        )
        return future.result  # type: ignore[no-any-return]

    stall(bench, ours, step_seconds), stall(bench, theirs, step_seconds)  # met for the first time
    calls: list[list[float]] = [[], []]

    def both(side: int, begin: Callable[[], Callable[[], Any]]) -> float:
        called, whole = stall(bench, begin, step_seconds)
        calls[side].append(called)
        return whole

    found = by_turns(lambda: both(0, ours), lambda: both(1, theirs), pairs)
    lines = [
        line("checkpoint", f"{PEER} async_save, until it has ended", "steps", found, more=False),
        line("checkpoint", f"{PEER} async_save, the call", "steps", calls, more=False),
    ]
    interval = {f"share of {INTERVAL} steps": median(found[0]) / INTERVAL}
    return lines, {"step_seconds": step_seconds, **interval}


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print a line for each comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three pairs")
    parser.add_argument("--tiny", action="store_true", help="a network of no size, to try it out")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args(arguments)
    pairs, numbers = 3 if options.quick else 9, SIZES["tiny" if options.tiny else "full"]
    bench = Bench(numbers, options.out / "checkpoint")
    try:
        say(f"{state_bytes(bench.model, bench.optimizer) / 1e6:.0f} MB, {pairs} pairs")
        saved = saves(bench, pairs)
        lines, details = stalls(bench, pairs)
    finally:
        shutil.rmtree(bench.folder, ignore_errors=True)
    details |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    tell([*lines, saved], details, options.out / "checkpoint.json")


if __name__ == "__main__":
    main()
