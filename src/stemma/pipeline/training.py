"""What every stage that trains shares: its usual keys, its logs, its loop with resume and signals.

The stage hands in a loss, a source of windows, and what to do now and then (score, write samples);
this owns the loop: it logs each step, saves checkpoints, and answers signals at step boundaries.
What it resumes from is the newest checkpoint that verifies (`stemma.pipeline.resume`); everything
later is computed again, bit for bit.
"""

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from stemma import api
from stemma.core import device as machine
from stemma.core.errors import DivergedError, UsageError
from stemma.core.files import free_bytes, sha256_file, sha256_json
from stemma.core.progress import LOG, progress
from stemma.core.signals import graceful
from stemma.data.batches import Order
from stemma.data.order import samples_of
from stemma.data.tokenizer import Tokenizer
from stemma.nn.select import train_only
from stemma.pipeline import keys, regime
from stemma.pipeline.processes import row_file, spread_over, write_final
from stemma.pipeline.records import settings
from stemma.pipeline.resume import find_start
from stemma.pipeline.rows import NoRows, RowFile
from stemma.pipeline.work import Work
from stemma.train import checkpoint
from stemma.train.loop import LossSum, Together, fit
from stemma.train.memory import Memory
from stemma.train.optimizer import optimizer_for
from stemma.train.pretrain import windows
from stemma.train.saver import Saver
from stemma.train.schedule_free import evaluated, settle

PLAN = "plan.safetensors"
SPARE = 1.2  # times the next checkpoint that should be free on the disk
NAMED = 6  # samples of a batch that a message names


class Store(Protocol):
    """What the loop asks of the tokens that are trained on."""

    @property
    def fingerprint(self) -> str: ...


class Plan(Protocol):
    """What the loop asks of a plan: `pairs` counts the pairs of each sample."""

    @property
    def context(self) -> int: ...
    @property
    def num_samples(self) -> int: ...
    @property
    def pairs(self) -> NDArray[np.int64]: ...


def require_batch(stage: keys.Settings, name: str, plan: Plan) -> None:
    """Refuse data that do not fill one batch: samples would repeat inside it (UsageError)."""
    rows, count = batch_rows(stage), plan.num_samples
    if count < rows:
        samples, verb = ("sample", "is") if count == 1 else ("samples", "are")
        what = f"{count} {samples} of {stage.context} tokens {verb} less than a batch of {rows}"
        fix = f"use batch_tokens={count * stage.context}, or more documents"
        raise UsageError(what, place=f"{name}: batch_tokens", fix=fix)


@dataclass
class Training:
    """One training run: what its steps share, how far it is, and what it has written.

    `places` of all steps so far; `filled` of them held a pair, `tokens` of those counted.
    """

    stage: keys.Settings
    work: Work
    model: Any
    tokenizer: Tokenizer
    store: Any
    plan: Any
    optimizer: torch.optim.Optimizer
    fingerprints: dict[str, str]
    num_steps: int
    metrics: RowFile | NoRows
    samples: RowFile | NoRows
    spread: Together
    data_resets: list[dict[str, Any]]
    saver: Saver
    memory: Memory = field(default_factory=Memory)
    step: int = 0
    tokens: int = 0
    places: int = 0
    filled: int = 0
    seconds: float = 0.0
    loss: float | None = None
    heldout: tuple[int, float] | None = None  # the last held-out score, and the step it is of

    @property
    def steps_folder(self) -> Path:
        return self.work.folder / "steps"

    def save(self) -> None:
        """Write the checkpoint of this step, then let old ones go; or begin to.

        The newest stay, and so does the one with the lowest score that was measured at its step.
        """
        state = {
            "format_version": 1,
            "step": self.step,
            "tokens": self.tokens,
            "places": self.places,
            "filled": self.filled,
            "seconds": self.seconds,
            "loss": self.loss,
            "seed": self.work.seed,
            "memory": self.memory.to_json(),
            "model": network(self.model),
            "settings": method(self.stage, self.work),
            "data_resets": self.data_resets,
            "machine": machine.machine(),
            "versions": machine.versions(),
        }
        if self.heldout is not None and self.heldout[0] == self.step:
            state["heldout"] = self.heldout[1]
        self.saver.save(
            self.model,
            self.optimizer,
            state,
            self.fingerprints,
            parallel=self.stage.parallel.model_dump(),
            more=self.memory.averages(),
            first=self.sync_rows,
        )

    def sync_rows(self) -> None:
        """Make the histories durable: a checkpoint counts on the rows up to its step."""
        for rows in (self.metrics, self.samples):
            rows.sync()

    def watched(self, score: float, **numbers: float) -> None:
        """Note what held-out data say at this step; `score` is what is better the lower it is."""
        self.metrics.add(step=self.step, tokens=self.tokens, **numbers)
        self.heldout = (self.step, score) if math.isfinite(score) else None


def network(model: Any) -> dict[str, Any]:
    """What a network is: its family, the version of that, and its numbers."""
    config = model.config
    numbers: dict[str, Any] = config.model_dump(mode="json")
    return {"family": config.family, "family_version": config.family_version} | numbers


def method(stage: Any, work: Work) -> dict[str, Any]:
    """How a stage learns, whatever its data: its settings, and the model that it goes on from."""
    apart = stage.DATA | {"samples", "watch", "tokenizer", "model"}  # the last two are told already
    values, given = settings(stage, defaults=True).items(), settings(stage, defaults=False)
    apart |= keys.LATER - given.keys()
    found = {key: value for key, value in values if key not in apart}
    if getattr(stage, "init", None) is not None:
        found["init"] = work.inputs[stage.init].fingerprint
    return found


def batch_rows(stage: keys.Settings) -> int:
    """Samples of a step."""
    return stage.batch_tokens // stage.context


def micro_rows(stage: keys.Settings) -> int:
    """Samples that go through the network at once."""
    return (stage.micro_batch_tokens or stage.batch_tokens) // stage.context


def counted_places(plan: Plan, seed: int, count: int) -> dict[str, int]:
    """What a checkpoint of version 0.1 does not say: the places of the first `count` samples."""
    _, samples = samples_of(0, count, plan.num_samples, seed=seed)
    return {"places": count * plan.context, "filled": int(plan.pairs[samples].sum())}


def begin(
    stage: keys.Settings,
    work: Work,
    model: Any,
    tokenizer: Tokenizer,
    store: Store,
    plan: Plan,
    *,
    num_steps: int,
    plan_file: Path | None = None,
) -> Training:
    """Set up a training run, or go on with the one that the folder holds.

    `plan_file` is where the plan lies if not in the run's own folder.

    Raises ModelError where the newest checkpoint belongs to something else, UsageError where the
    data do not fill a batch, or hold less than has been trained already.
    """
    rows = batch_rows(stage)
    fingerprints = {
        "config": api.fingerprint(model.config),
        "data": store.fingerprint,
        "plan": sha256_file(plan_file or work.folder / "data" / PLAN),
        "order": sha256_json([work.seed, rows]),
        "length": sha256_json([num_steps, micro_rows(stage)]),
        "tokenizer": tokenizer.fingerprint,
    }
    train_only(model, stage.trainable, place=f"{work.name}: trainable")
    world, place = work.world, f"{work.name}: batch_tokens"
    spread = spread_over(world, stage.parallel, model, rows=rows, place=place)
    optimizer = optimizer_for(model, stage.optimizer, learning_rate=stage.learning_rate)
    start = find_start(work, fingerprints, network(model), method(stage, work))
    if start.found is None or start.reset:
        require_batch(stage, work.name, plan)
    if start.step > num_steps:
        what = f"{start.step} steps are done, and the data now make {num_steps}"
        raise UsageError(what, place=work.name, fix="give it more tokens, steps or epochs")
    state: dict[str, Any] = {"tokens": 0, "places": 0, "filled": 0, "seconds": 0.0, "loss": None}
    memory = regime.begin_steps(stage, model, place=work.name)
    if start.found is not None:
        checkpoint.restore(start.found, model, optimizer)
        regime.go_on(memory, start.found)
        state = start.found.state
        if "places" not in state:
            state = state | counted_places(plan, work.seed, start.step * rows)
    if start.step == num_steps:
        settle(optimizer)
        regime.settle(stage, memory)
    work.begun, work.data_resets = True, start.data_resets
    kept = start.step if start.found else -1  # without one the rows of step 0 come again too
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
        metrics=row_file(world, work.folder / "metrics.jsonl", "metrics", keep_to_step=kept),
        samples=row_file(world, work.folder / "samples.jsonl", "samples", keep_to_step=kept),
        spread=spread,
        data_resets=start.data_resets,
        saver=Saver(work.folder / "steps", stage.saving, keep=stage.keep_checkpoints, world=world),
        memory=memory,
        step=start.step,
        tokens=state["tokens"],
        places=state["places"],
        filled=state["filled"],
        seconds=state["seconds"],
        loss=state["loss"],
    )


def due(step: int, every: int, last: int) -> bool:
    """Whether something that happens every `every` steps, and at the end, happens now."""
    return every > 0 and (step % every == 0 or step == last)


Windows = Callable[..., Generator[list[Any], None, None]]
"""Makes the micro-batches of steps, as `stemma.train.pretrain.windows` does."""

Occasion = tuple[int, Callable[[], None]]
"""Every how many steps, and what is then done; 0: never."""


def train(
    training: Training,
    loss_sum: LossSum[Any],
    *occasions: Occasion,
    windows: Windows = windows,
) -> None:
    """Run the remaining steps; each occasion comes when it is due, and at the end.

    `windows` makes the micro-batches of each step from the store and the order.
    """
    stage, work, last = training.stage, training.work, training.num_steps
    order = Order(training.plan, work.seed, batch_rows(stage))
    warn_of_space(training)
    with (
        closing(batches(training, order, windows)) as windows_ahead,
        graceful() as request,
        progress(work.name, last) as update,
        told(training),
        training.saver,  # what it still writes is there before anything is told
        regime.applied(stage, training.model, place=f"{work.name}: recompute.modules"),
    ):
        steps = fit(
            training.model,
            windows_ahead,
            loss_sum,
            training.optimizer,
            learning_rate=lambda step: stage.learning_rate * stage.schedule.share(step, last),
            clip=stage.clip,
            seed=work.seed,
            first_step=training.step,
            memory=training.memory,
            together=training.spread,
        )
        steps = regime.traced(steps, stage, first_step=training.step, folder=work.folder)
        for numbers, taken in timed(blamed(steps, training, order)):
            training.saver.check()
            note(training, order, numbers, taken)
            loss = numbers.get("loss", training.loss or 0.0)
            update(training.step, loss=loss, tokens_per_second=speed(numbers, taken))
            for every, act in occasions:
                if due(training.step, every, last):
                    with (
                        evaluated(training.optimizer),
                        regime.scoring(training.model, training.memory),
                    ):
                        act()
                        training.spread.rest()
            asked = work.world.most(
                request.number
            )  # looked at once: what comes later waits for the next step
            if asked or due(training.step, stage.checkpoint_every, last):
                training.save()
            if asked:
                request.number = asked
                training.saver.require()
                request.raise_stop(training.step)
    if training.step == last:
        settle(training.optimizer)
        regime.settle(stage, training.memory)
    request.number = work.world.most(request.number)
    if request.number:  # it came while the last step was saved, or while the rest was closed
        training.saver.require()
        request.raise_stop(training.step)


def batches(training: Training, order: Order, windows: Windows) -> Generator[list[Any], None, None]:
    """The windows of the remaining steps."""
    stage = training.stage
    return windows(
        training.store,
        order.of_part(training.spread.part, training.spread.parts),
        first_step=training.step,
        steps=training.num_steps,
        rows=micro_rows(stage),
        workers=stage.workers,
    )


def note(training: Training, order: Order, numbers: dict[str, float], taken: float) -> None:
    """Count a step that was consumed, and write its row; if left out, with its samples."""
    stage, samples = training.stage, order.samples(training.step)
    filled = int(training.plan.pairs[samples].sum())
    training.filled += filled
    training.places += stage.batch_tokens
    training.step = int(numbers["step"])
    training.tokens += int(numbers["tokens"])
    training.seconds += taken
    row: dict[str, Any] = {**numbers, "tokens": training.tokens}
    row["tokens_per_second"] = speed(numbers, taken)
    if regime.left_out(numbers):
        LOG.warning("%s: step %d was left out", training.work.name, training.step - 1)
        row["samples"] = samples.tolist()
    else:
        training.loss = numbers["loss"]
        if due(training.step, stage.statistics.every, -1):
            row |= regime.use_of_machine(stage, training.model, filled, taken)
    training.metrics.add(**row, seconds=training.seconds)


def speed(numbers: dict[str, float], taken: float) -> float:
    """Counted tokens a second."""
    return numbers["tokens"] / max(1e-9, taken)


def warn_of_space(training: Training) -> None:
    """Say before the first step that the next checkpoint may not fit on the disk."""
    needed = checkpoint.state_bytes(training.model, training.optimizer)
    free = free_bytes(training.steps_folder)
    if free < SPARE * needed:
        what = "%s: the next checkpoint needs about %d bytes, and %d are free"
        LOG.warning(what, training.work.name, needed, free)


def timed(steps: Iterable[dict[str, float]]) -> Iterator[tuple[dict[str, float], float]]:
    """Each step's numbers with the seconds it took, without what its receiver did between."""
    iterator = iter(steps)
    while True:
        started = time.monotonic()
        numbers = next(iterator, None)
        if numbers is None:
            return
        yield numbers, time.monotonic() - started


def blamed(
    steps: Iterable[dict[str, float]], training: Training, order: Order
) -> Iterator[dict[str, float]]:
    """The steps; a divergence among them names the samples of its batch."""
    try:
        yield from steps
    except DivergedError as error:
        samples = order.samples(training.step).tolist()
        named = ", ".join(map(str, samples[:NAMED])) + (", …" if len(samples) > NAMED else "")
        raise DivergedError(f"{error.what}, samples {named}", fix=error.fix) from error


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
    training: Training,
    prompts: Sequence[str],
    texts: Sequence[str],
    temperature: float,
    **more: Sequence[Any],
) -> None:
    """Note what the model writes at this step; `more` has further columns of the rows."""
    for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        training.samples.add(
            step=training.step,
            tokens=training.tokens,
            prompt=prompt,
            text=text,
            seed=training.work.seed,
            temperature=temperature,
            **{name: column[number] for name, column in more.items()},
        )


def write_model(training: Training) -> None:
    """Leave `final/`, a Hugging Face folder of what was trained."""
    work = training.work
    final, spread = work.folder / "final", training.spread
    write_final(work.world, training.model, spread, training.tokenizer, final)


def summary(training: Training) -> dict[str, Any]:
    """What a training stage tells of itself when it is done."""
    model, skipped = training.model, training.memory.skipped
    return ({"skipped_steps": skipped} if skipped else {}) | {
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
