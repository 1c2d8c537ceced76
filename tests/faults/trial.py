"""A folder in which a trainer's run is broken and gone on with, and what must come out the same."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stemma.core.files import sha256_file
from stemma.train.checkpoint import checkpoints
from tests.faults.forks import Child, Ended, Zygote
from tests.faults.shim import Fault
from tests.faults.trainers import Trainer

CLOCK = {"seconds", "tokens_per_second"}  # what two runs may differ in


@dataclass(frozen=True)
class Trial:
    """A project folder whose stages before the trainer's are complete."""

    zygote: Zygote
    trainer: Trainer
    folder: Path

    @property
    def stage(self) -> Path:
        """The trainer's folder in the run."""
        return self.folder / "out" / self.trainer.stage

    @property
    def steps(self) -> Path:
        """Its checkpoints."""
        return self.stage / "steps"

    def start(self, *more: str, fault: Fault | None = None, **place: Any) -> Child:
        """Start the command, to be broken at a place."""
        argv = ["run", "tiny.yaml", *more]
        return self.zygote.start("command", self.folder, fault=fault, argv=argv, **place)

    def run(self, *more: str, fault: Fault | None = None, **place: Any) -> Ended:
        """Run the command to its end."""
        return self.start(*more, fault=fault, **place).wait()

    def finish(self, *more: str) -> Ended:
        """Run the command, which must end well."""
        ended = self.run(*more)
        assert ended.code == 0, ended.err
        return ended

    def copied(self, folder: Path) -> "Trial":
        """The same in another folder."""
        shutil.copytree(self.folder, folder)
        return Trial(self.zygote, self.trainer, folder)

    def rows(self) -> list[dict[str, Any]]:
        """The whole rows of the metrics, but for what the clock says."""
        path = self.stage / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        rows = [json.loads(line) for line in lines]
        return [{key: row[key] for key in row if key not in CLOCK} for row in rows]

    def taken(self) -> int:
        """Steps taken so far."""
        return max((row["step"] for row in self.rows() if "loss" in row), default=0)

    def results(self) -> dict[str, Any]:
        """What a run must give whatever happened on the way."""
        newest = checkpoints(self.steps)[-1]
        return {
            "weights": sha256_file(self.stage / "final" / "model.safetensors"),
            "step": newest.name,
            "state": sha256_file(newest / "rank-00000.safetensors"),
            "metrics": self.rows(),
            "samples": (self.stage / "samples.jsonl").read_text(),
        }

    def leftovers(self) -> list[Path]:
        """Whatever is hidden in the run folder: what a run writes is hidden until it is whole."""
        return sorted((self.folder / "out").rglob(".*"))


def prepared(zygote: Zygote, trainer: Trainer, folder: Path) -> Trial:
    """A project whose stages before the trainer's are complete."""
    trainer.lay_out(folder)
    trial = Trial(zygote, trainer, folder)
    trial.finish()
    shutil.rmtree(trial.stage)
    return trial
