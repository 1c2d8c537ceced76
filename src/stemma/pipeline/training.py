"""What every stage that trains shares: its usual keys, its logs, its loop with resume and signals.

The stage hands in a loss, a source of windows, and what to do now and then (score, write samples);
this owns the loop: it logs each step, saves checkpoints, and answers signals at step boundaries.
What it resumes from is the newest checkpoint that verifies; everything later is computed again,
bit for bit.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from stemma import api
from stemma.core import device as machine
from stemma.core.config import StrictModel, multiple
from stemma.core.errors import DivergedError, ModelError
from stemma.core.files import sha256_file, write_text
from stemma.core.progress import LOG, progress
from stemma.core.signals import graceful
from stemma.data.batches import Batch, Order
from stemma.data.packing import Plan
from stemma.data.store import TokenStore
from stemma.data.tokenizer import Tokenizer
from stemma.nn.select import train_only
from stemma.pipeline.work import Work
from stemma.train import checkpoint
from stemma.train.loop import fit
from stemma.train.optimizer import AdamW, adamw
from stemma.train.pretrain import windows
from stemma.train.schedule import Cosine, Schedule

PLAN = "plan.safetensors"
UNSEEN = frozenset({"minutes", "checkpoint_every", "keep_checkpoints", "device"})


class Samples(StrictModel):
    """Texts written along training, for the report."""

    every: int = Field(default=0, ge=0, description="steps between samples; 0: none")
    prompts: tuple[str, ...] = Field(
        default=(), description="what to continue; default: how held-out documents begin"
    )
    max_new_tokens: int = Field(default=60, ge=1, description="tokens a sample")
    temperature: float = Field(default=0.8, ge=0, description="0 takes the likeliest token")


# keys that every training stage has: one description, one default and one limit for all
Context = Annotated[int, Field(ge=2, description="tokens of a sample")]
Tokens = Annotated[
    int | None, Field(default=None, ge=1, description="tokens to train on, rounded up")
]
Steps = Annotated[int | None, Field(default=None, ge=1, description="optimizer steps")]
BatchTokens = Annotated[int, Field(ge=1, description="tokens a step; a multiple of context")]
MicroBatchTokens = Annotated[
    int | None,
    Field(default=None, ge=1, description="tokens at once in memory; default: the whole batch"),
]
LearningRate = Annotated[float, Field(gt=0, description="peak learning rate")]
RateSchedule = Annotated[
    Schedule, Field(default=Cosine(kind="cosine"), description="how the rate moves")
]
Optimizer = Annotated[AdamW, Field(default=AdamW(), description="numbers of AdamW")]
Clip = Annotated[float, Field(default=1.0, gt=0, description="largest gradient norm")]
Trainable = Annotated[
    tuple[str, ...],
    Field(default=(), description="patterns of the modules to train, as blocks.*; default: all"),
]
SampleSetting = Annotated[Samples, Field(default=Samples(), description="texts along training")]
CheckpointEvery = Annotated[int, Field(default=500, ge=1, description="steps between checkpoints")]
KeepCheckpoints = Annotated[int, Field(default=2, ge=1, description="newest checkpoints to keep")]
Device = Annotated[str, Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")]
Minutes = Annotated[
    float | None, Field(default=None, ge=0, description="budget, printed beforehand")
]


class Settings(Protocol):
    """What the loop reads of a stage's configuration."""

    @property
    def context(self) -> int: ...
    @property
    def batch_tokens(self) -> int: ...
    @property
    def micro_batch_tokens(self) -> int | None: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def schedule(self) -> Schedule: ...
    @property
    def optimizer(self) -> AdamW: ...
    @property
    def clip(self) -> float: ...
    @property
    def trainable(self) -> tuple[str, ...]: ...
    @property
    def samples(self) -> Samples: ...
    @property
    def checkpoint_every(self) -> int: ...
    @property
    def keep_checkpoints(self) -> int: ...


def check_batches(stage: Settings) -> None:
    """Steps hold whole samples: for use in validators."""
    multiple("batch_tokens", stage.batch_tokens, "context", stage.context)
    if stage.micro_batch_tokens is not None:
        multiple("micro_batch_tokens", stage.micro_batch_tokens, "context", stage.context)


class RowFile:
    """A JSONL file with a header, cut back to a step at resume and appended to from there."""

    def __init__(self, path: Path, kind: str, *, keep_to_step: int) -> None:
        header = json.dumps({"format_version": 1, "kind": kind})
        kept = [line for line in whole_lines(path)[1:] if step_of(line) <= keep_to_step]
        write_text(path, "".join(f"{line}\n" for line in [header, *kept]))
        self.path = path

    def add(self, **row: Any) -> None:
        """Append one row; it is on its way to disk when this returns."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def whole_lines(path: Path) -> list[str]:
    """Complete lines of a file that may have been cut in the middle of one."""
    text = path.read_text("utf-8", errors="replace") if path.exists() else ""
    return text.split("\n")[:-1]


def step_of(line: str) -> float:
    """The step of a row; beyond all steps for a line that is no row, so that it is left out."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


@dataclass
class Training:
    """One training run: what its steps share, how far it is, and what it has written."""

    stage: Settings
    work: Work
    model: Any
    tokenizer: Tokenizer
    store: TokenStore
    plan: Plan
    optimizer: torch.optim.Optimizer
    fingerprints: dict[str, str]
    num_steps: int
    metrics: RowFile
    samples: RowFile
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float | None = None

    @property
    def steps_folder(self) -> Path:
        return self.work.folder / "steps"

    def save(self) -> None:
        """Write the checkpoint of this step, then let old ones go."""
        state = {
            "format_version": 1,
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "loss": self.loss,
            "seed": self.work.seed,
            "machine": machine.machine(),
            "versions": machine.versions(),
        }
        checkpoint.save_checkpoint(
            self.steps_folder, self.model, self.optimizer, state, self.fingerprints
        )
        checkpoint.retain(self.steps_folder, keep=self.stage.keep_checkpoints)


def begin(
    stage: Settings,
    work: Work,
    model: Any,
    tokenizer: Tokenizer,
    store: TokenStore,
    plan: Plan,
    *,
    num_steps: int,
) -> Training:
    """Set up a training run, or go on with the one that the folder holds.

    Raises ModelError where the newest checkpoint belongs to something else.
    """
    fingerprints = {
        "config": api.fingerprint(model.config),
        "data": store.fingerprint,
        "plan": sha256_file(work.folder / "data" / PLAN),
        "tokenizer": tokenizer.fingerprint,
    }
    train_only(model, stage.trainable, place=f"{work.name}: trainable")
    optimizer = adamw(model, stage.optimizer, learning_rate=stage.learning_rate)
    found = newest(work, fingerprints)
    if found is not None:
        checkpoint.restore(found, model, optimizer)
    fresh: dict[str, Any] = {"step": 0, "tokens": 0, "seconds": 0.0, "loss": None}
    state = found.state if found else fresh
    step = int(state["step"])
    kept = step if found else -1  # without a checkpoint the rows of step 0 are written again too
    return Training(
        stage=stage,
        work=work,
        model=model,
        tokenizer=tokenizer,
        store=store,
        plan=plan,
        optimizer=optimizer,
        fingerprints=fingerprints,
        num_steps=num_steps,
        metrics=RowFile(work.folder / "metrics.jsonl", "metrics", keep_to_step=kept),
        samples=RowFile(work.folder / "samples.jsonl", "samples", keep_to_step=kept),
        step=step,
        tokens=state["tokens"],
        seconds=state["seconds"],
        loss=state["loss"],
    )


def newest(work: Work, fingerprints: dict[str, str]) -> checkpoint.Checkpoint | None:
    """The newest checkpoint that verifies, if there is one.

    Raises ModelError, naming what differs, where it was made from other inputs.
    """
    steps_folder = work.folder / "steps"
    checkpoint.clear_leftovers(steps_folder)
    found, damaged = checkpoint.newest_checkpoint(steps_folder)
    for error in damaged:
        LOG.warning("set aside a damaged checkpoint: %s", error)
    if found is None:
        if damaged:
            LOG.warning("%s: no sound checkpoint is left, so it starts over", work.name)
        return None
    stored = found.manifest["fingerprints"]
    names = {"config": "network", "data": "documents", "plan": "packing", "tokenizer": "tokenizer"}
    other = [name for key, name in names.items() if stored.get(key) != fingerprints[key]]
    if other:
        what = f"the checkpoint was made with another {' and '.join(other)}"
        fix = f"remove {work.folder} to train it again, or give back what it was trained on"
        raise ModelError(what, place=found.folder, fix=fix)
    LOG.info("%s: resumed from step %d", work.name, found.step)
    return found


def due(step: int, every: int, last: int) -> bool:
    """Whether something that happens every `every` steps, and at the end, happens now."""
    return every > 0 and (step % every == 0 or step == last)


Occasion = tuple[int, Callable[[], None]]
"""Every how many steps, and what is then done; 0: never."""


def train(
    training: Training, loss_sum: Callable[[nn.Module, Batch], Tensor], *occasions: Occasion
) -> None:
    """Run the remaining steps; each occasion comes when it is due, and at the end."""
    stage, work, last = training.stage, training.work, training.num_steps
    order = Order(training.plan, work.seed, stage.batch_tokens // stage.context)
    rows = (stage.micro_batch_tokens or stage.batch_tokens) // stage.context
    steps = fit(
        training.model,
        windows(training.store, order, first_step=training.step, steps=last, rows=rows),
        loss_sum,
        training.optimizer,
        learning_rate=lambda step: stage.learning_rate * stage.schedule.share(step, last),
        clip=stage.clip,
        seed=work.seed,
        first_step=training.step,
    )
    with graceful() as request, progress(work.name, last) as update, told(training):
        for numbers, taken in timed(steps):
            training.step, training.loss = int(numbers["step"]), numbers["loss"]
            training.tokens += int(numbers["tokens"])
            training.seconds += taken
            speed = numbers["tokens"] / max(1e-9, taken)
            row = numbers | {"tokens": training.tokens, "tokens_per_second": speed}
            training.metrics.add(**row, seconds=training.seconds)
            update(training.step, loss=numbers["loss"], tokens_per_second=speed)
            for every, act in occasions:
                if due(training.step, every, last):
                    act()
            if due(training.step, stage.checkpoint_every, last) or request.number:
                training.save()
            if request.number:
                request.raise_stop(training.step)


def timed(steps: Iterable[dict[str, float]]) -> Iterator[tuple[dict[str, float], float]]:
    """Each step's numbers with the seconds it took, without what its receiver did between."""
    iterator = iter(steps)
    while True:
        started = time.monotonic()
        numbers = next(iterator, None)
        if numbers is None:
            return
        yield numbers, time.monotonic() - started


@contextmanager
def told(training: Training) -> Iterator[None]:
    """Add to a divergence which checkpoint is there to go back to."""
    try:
        yield
    except DivergedError as error:
        saved = checkpoint.checkpoints(training.steps_folder)
        kept = f"last checkpoint: {saved[-1]}" if saved else "no checkpoint was saved yet"
        raise DivergedError(
            f"{error.what} ({kept})", place=training.work.name, fix=error.fix
        ) from error


def add_samples(
    training: Training, prompts: Sequence[str], texts: Sequence[str], temperature: float
) -> None:
    """Note what the model writes at this step."""
    for prompt, text in zip(prompts, texts, strict=True):
        training.samples.add(
            step=training.step,
            tokens=training.tokens,
            prompt=prompt,
            text=text,
            seed=training.work.seed,
            temperature=temperature,
        )


def summary(training: Training) -> dict[str, Any]:
    """What a training stage tells of itself when it is done."""
    model = training.model
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "tokens": training.tokens,
        "steps": training.step,
        "tokens_per_second": training.tokens / max(1e-9, training.seconds),
        "training_seconds": training.seconds,
        "final_loss": training.loss,
        "loss_reduction": "sum over counted tokens of the step, divided by their number",
        "model": {"family": model.config.family, **model.config.model_dump(mode="json")},
    }
