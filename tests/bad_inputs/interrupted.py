"""A run that was killed in its training, for what comes afterwards.

Six steps are wanted, checkpoints are of steps 2 and 4, and the end comes right after the fifth.
Whatever happens then, what was saved stays, and the same command goes on to the weights of a run
that was never stopped.
"""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from stemma.core.files import sha256_file
from stemma.pipeline.rows import RowFile
from tests.bad_inputs.command_line import Outcome, call
from tests.bad_inputs.layouts import RECIPE, good_documents, line, put

RUN = "run tiny.yaml"
BASE = Path("runs/tiny/base")
MODEL = BASE / "final" / "model.safetensors"
SIX = RECIPE.replace("steps: 2", "steps: 6\n    checkpoint_every: 2").replace(
    "num_heads: 2}", "num_heads: 2, dropout: 0.1}"
)
RESUMED = "base: resumed from step 4"


class Killed(BaseException):
    """Stands for the end of the process at any line."""


def killed() -> None:
    """The end of the process."""
    raise Killed


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    """Do something right after a step was taken and noted."""
    real = RowFile.add

    def add(self: RowFile, **row: Any) -> None:
        real(self, **row)
        if "loss" in row and row["step"] == step:
            act()

    monkeypatch.setattr(RowFile, "add", add)


def killed_at(folder: Path, step: int, command: str = RUN) -> None:
    """A run that ends right after a step, without a word."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        at_step(patch, step, killed)
        call(folder, command)


def lay_out(folder: Path) -> None:
    """The recipe of six steps, and documents for more than one batch of it."""
    good_documents(folder)
    put(folder / "tiny.yaml", SIX)
    put(
        folder / "docs" / "more.jsonl", "".join(line(f"the cat {n} sat on a mat") for n in range(9))
    )


@cache
def unbroken_weights(temporary: Path) -> str:
    """The weights of the run that was never stopped."""
    folder = temporary / "never-stopped"
    folder.mkdir()
    lay_out(folder)
    assert call(folder, RUN).code == 0
    return sha256_file(folder / MODEL)


@cache
def killed_once(temporary: Path) -> Path:
    """The interrupted run, not to be changed."""
    folder = temporary / "killed-once"
    folder.mkdir()
    lay_out(folder)
    killed_at(folder, 5)
    assert [f.name for f in sorted((folder / BASE / "steps").iterdir())] == ["00000002", "00000004"]
    return folder


def killed_copy(folder: Path, temporary: Path) -> Path:
    """The interrupted run, in a folder that a case may harm."""
    return Path(shutil.copytree(killed_once(temporary), folder / "here"))


def messages(outcome: Outcome) -> list[str]:
    """What was said on the way."""
    rows = [json.loads(text) for text in outcome.err.splitlines() if text.startswith("{")]
    return [row["message"] for row in rows if "message" in row]


def goes_on(folder: Path, weights: str, command: str = RUN) -> Outcome:
    """The same command ends well, with the weights of the run that was never stopped."""
    outcome = call(folder, command)
    assert outcome.code == 0, outcome.err
    assert sha256_file(folder / MODEL) == weights
    assert not list((folder / "runs").rglob(".*"))
    return outcome


def record(folder: Path, stage: str = "base") -> dict[str, Any]:
    """A stage's record."""
    found: dict[str, Any] = json.loads((folder / "runs/tiny" / stage / "stage.json").read_text())
    return found
